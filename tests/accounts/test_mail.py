"""Mail: installations without a mail server, the sender's address, and the test mail."""

import smtplib
import socket
import ssl
from typing import Any

import pytest
from django.core import mail
from django.core.cache import cache
from django.core.checks import run_checks
from django.test import Client

from accounts.mail import AT_MOST, reason
from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from gatewayadmin.config.environment import Refused
from gatewayadmin.config.outbound import mailers, sender
from tests import make
from tests.accounts.again import confirmed
from tests.conftest import SignIn
from tests.rest import Rest, problem

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def fresh_limits(db: None) -> None:
    cache.clear()


@pytest.fixture
def chief() -> User:
    return make.user(*Capability, email="chief@example.com", display_name="Chief")


@pytest.fixture
def no_mail(settings: Any) -> None:
    """An installation without a mail server."""
    settings.MAIL_SERVER = ""
    settings.MAILERS = mailers("")


def text(response: Any) -> str:
    return str(response.content.decode())


# --- Without a mail server ----------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_invitation_without_mail_is_shown_to_whoever_invites_and_printed_nowhere(
    chief: User, sign_in: SignIn, no_mail: None, capfd: pytest.CaptureFixture[str]
) -> None:
    form = {"emails": "bo@example.com", "role": str(make.role().pk)}
    page = text(confirmed(sign_in(chief)).post("/people/invite/", form))
    told = Rest.of(chief).post("/users", {"email": "cy@example.com", "role_id": form["role"]}).json()["invitation"]

    assert "No mail server is set, so nothing was mailed. Only you have this link." in page
    assert "/accounts/join/" in page
    assert told["mailed"] is False
    assert "/accounts/join/" in told["link"]
    assert "accounts/join" not in "".join(capfd.readouterr())


@pytest.mark.full
def test_resets_and_test_mails_are_not_offered_without_mail(chief: User, sign_in: SignIn, no_mail: None) -> None:
    bo = make.user(email="bo@example.com")

    asked = Client().get("/accounts/password/reset/")
    sent = Client().post("/accounts/password/reset/", {"email": bo.email})
    page = text(sign_in(chief).get(f"/people/{bo.pk}/"))
    forced = text(sign_in(chief).post(f"/people/{bo.pk}/reset/", follow=True))

    for answer in (asked, sent):
        assert "Ask an administrator" in text(answer)
        assert 'name="email"' not in text(answer)
    assert (asked.status_code, sent.status_code) == (200, 409)
    assert "<code>.venv/bin/python manage.py password_link bo@example.com</code>" in page
    assert "Send password reset" not in page
    assert "This installation has no mail server" in forced
    assert "Send test mail" not in text(sign_in(chief).get("/settings/workspace"))
    assert problem(Rest.of(chief).post("/workspace/test-mail")) == (409, "no_mail_server")
    assert not Event.objects.filter(action="user.password_reset_sent").exists()


# --- The sender ---------------------------------------------------------------------------------------------------


def test_mail_is_from_whom_the_setting_names_which_must_be_an_address() -> None:
    named = "Our Gateway <gateway@example.com>"
    assert (sender("", "gw.example.com"), sender(named, "gw.example.com")) == ("gateway-admin@gw.example.com", named)
    for value in ("nobody", "a@b@c", "@example.com", "Gateway <>", "a b@example.com"):
        with pytest.raises(Refused, match="GATEWAY_EMAIL_FROM must be an address"):
            sender(value, "gw.example.com")


def test_a_deployment_with_mail_has_a_sender(settings: Any) -> None:
    for server, named, address, warned in (
        ("", False, "gateway-admin@localhost", False),
        ("mail.example.com:587", False, "gateway-admin@gw.example.com", True),
        ("mail.example.com:587", True, "Gateway <gateway@box.local>", True),
        ("mail.example.com:587", True, "Gateway <gateway@example.com>", False),
    ):
        settings.MAIL_SERVER, settings.EMAIL_FROM_IS_SET, settings.DEFAULT_FROM_EMAIL = server, named, address
        told = [check.id for check in run_checks(tags=["mail"], include_deployment_checks=True)]
        assert ("gatewayadmin.W002" in told) is warned, (server, address)


# --- The test mail ------------------------------------------------------------------------------------------------


def test_a_test_mail_goes_to_whoever_asks_and_says_so(chief: User, sign_in: SignIn) -> None:
    page = text(sign_in(chief).post("/settings/workspace/test-mail", follow=True))
    told = Rest.of(chief).post("/workspace/test-mail").json()

    words = "Sent to chief@example.com through mail.example.com:587."
    assert words in page
    assert "Send test mail" in page
    assert 'name="version"' in page
    assert told == {"sent": True, "to": "chief@example.com", "detail": words}
    assert [message.to for message in mail.outbox] == [["chief@example.com"]] * 2
    events = Event.objects.filter(action="workspace.mail_tested")
    assert [(event.actor_email, event.changes["sent"]) for event in events] == [("chief@example.com", True)] * 2


def test_a_test_mail_that_is_not_taken_says_why(chief: User, settings: Any) -> None:
    options = {"host": "127.0.0.1", "port": 1, "timeout": 1}
    settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend", "OPTIONS": options}}
    settings.MAIL_SERVER = "127.0.0.1:1"

    told = Rest.of(chief).post("/workspace/test-mail")

    assert told.status_code == 200
    assert told.json() == {"sent": False, "to": chief.email, "detail": "Nothing listens at 127.0.0.1:1."}


def test_a_mail_servers_reply_is_shown_in_words() -> None:
    for error, words in (
        (smtplib.SMTPAuthenticationError(535, b"5.7.8 bad"), "refused the user name or the password: 535 5.7.8 bad"),
        (smtplib.SMTPSenderRefused(553, b"not\nyours", "x"), "(GATEWAY_EMAIL_FROM): 553 not yours"),
        (smtplib.SMTPRecipientsRefused({"a@b.c": (550, b"unknown")}), "refused the recipient: 550 unknown"),
        (smtplib.SMTPDataError(554, b"spam" * 500), "refused the mail: 554 spam"),
        (smtplib.SMTPServerDisconnected("gone"), "closed the connection. Use smtps:// for TLS from the start"),
        (ssl.SSLError("wrong version"), "does not speak TLS as expected"),
        (socket.gaierror(-2, "unknown"), "does not resolve"),
        (TimeoutError("timed out"), "did not answer in time"),
        (OSError(113, "No route to host"), "could not be reached: No route to host."),
    ):
        assert words in reason(error)
        assert len(reason(error)) < 500


@pytest.mark.full
def test_test_mails_are_limited_and_gated(chief: User, sign_in: SignIn) -> None:
    statuses = [Rest.of(chief).post("/workspace/test-mail").status_code for _ in range(AT_MOST)]
    over = Rest.of(chief).post("/workspace/test-mail")
    page = text(sign_in(chief).post("/settings/workspace/test-mail", follow=True))
    stranger = sign_in(make.user(*(set(Capability) - {Capability.WORKSPACE_MANAGE})))

    assert statuses == [200] * AT_MOST
    assert problem(over) == (429, "throttled")
    assert "At most five test mails can be sent in ten minutes." in page
    assert stranger.post("/settings/workspace/test-mail").status_code == 403
    assert len(mail.outbox) == AT_MOST
