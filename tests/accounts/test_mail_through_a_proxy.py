"""Mail sent over TLS to an outside mail server uses the outbound proxy; other mail is sent directly."""

import ssl
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.core.mail import send_mail
from django.db import connections
from pytest_django import Settings

from capabilities import Capability
from gatewayadmin.config.outbound import mailers, server_of
from tests import make
from tests.authority import certificate
from tests.forward_proxy import SECRET, USER_AND_SECRET, forward_proxy
from tests.rest import Rest
from tests.running.squid import squid
from tests.smtp_server import MailServer, mail_server
from tests.wire.test_forward_proxy import leads
from wire import forward_proxy as ways_out
from wire.forward_proxy import OutboundProxy, places
from wire.guard import tls

PUBLIC, NAME, LOGIN = "93.184.215.14", "mail.example.com", "gateway:of-mail"
SCHEMES = {"smtps": 465, "smtp+tls": 587}


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """Create TLS certificates for the mail server and the proxy, and trust their authority."""
    context = certificate(tmp_path / "end.pem", NAME, "127.0.0.1", "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "end.pem"))
    tls.cache_clear()
    ways_out._logged_at.clear()
    yield context
    tls.cache_clear()


def use(settings: Settings, url: str, proxy_port: int, **more: Any) -> None:
    settings.MAILERS = mailers(url)
    settings.MAIL_SERVER = server_of(settings.MAILERS)
    authorization = f"Basic {b64encode(USER_AND_SECRET.encode()).decode()}"
    settings.OUTBOUND_PROXY = OutboundProxy("127.0.0.1", proxy_port, authorization=authorization, **more)


def send() -> None:
    send_mail("Hello", "This is it.", None, ["ann@example.com"])


def took(server: MailServer) -> None:
    (mail,) = server.mails
    assert "This is it." in mail
    assert server.logins == [LOGIN.replace(":", " ")]
    assert not [line for line in server.plain if line.split()[0] not in {"EHLO", "STARTTLS", "ehlo"}]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_mail_goes_through_the_proxy_to_the_checked_address(
    scheme: str, end: ssl.SSLContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads(monkeypatch, NAME, PUBLIC)
    with (
        mail_server(end, from_the_start=scheme == "smtps") as server,
        forward_proxy(server.port, credentials=USER_AND_SECRET) as proxy,
    ):
        use(settings, f"{scheme}://{LOGIN}@{NAME}", proxy.port)
        send()
        took(server)

    assert proxy.asked == [f"{PUBLIC}:{SCHEMES[scheme]}"]


def test_a_proxy_that_is_spoken_to_over_tls_takes_no_mail_and_that_is_said(
    end: ssl.SSLContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads(monkeypatch, NAME, PUBLIC)
    with mail_server(end, from_the_start=True) as server, forward_proxy(server.port, end) as proxy:
        use(settings, f"smtps://{LOGIN}@{NAME}", proxy.port, encrypted=True)
        with pytest.raises(OSError, match="cannot use an https:// outbound proxy"):
            send()

    assert server.mails == []


def test_mail_to_a_name_that_the_proxy_resolves_is_told_by_name(
    end: ssl.SSLContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = leads(monkeypatch, NAME, "10.0.0.5")
    with mail_server(end) as server, forward_proxy(server.port, credentials=USER_AND_SECRET) as proxy:
        use(settings, f"smtp+tls://{LOGIN}@{NAME}", proxy.port, resolved=places(["example.com"]))
        send()
        took(server)

    assert proxy.asked == [f"{NAME}:587"]
    assert asked == []


@pytest.mark.parametrize(
    ("scheme", "more"),
    [
        ("smtp", {}),
        ("smtps", {}),
        ("smtps", {"resolved": places(["localhost"]), "direct": places(["localhost"])}),
    ],
    ids=["without TLS", "at a private address", "named in GATEWAY_NO_PROXY"],
)
def test_mail_goes_straight(scheme: str, more: dict[str, Any], end: ssl.SSLContext, settings: Settings) -> None:
    settings.PRIVATE_UPSTREAMS = []
    with (
        mail_server(end, from_the_start=scheme == "smtps", offers_tls=False) as server,
        forward_proxy(server.port) as proxy,
    ):
        use(settings, f"{scheme}://localhost:{server.port}", proxy.port, **more)
        send()

    assert len(server.mails) == 1
    assert proxy.asked == []


@pytest.mark.django_db(transaction=True)
def test_no_connection_of_the_database_is_held_while_a_mail_is_sent(end: ssl.SSLContext, settings: Settings) -> None:
    make.user()
    sender, held = connections["default"], list[bool]()
    with mail_server(end, offers_tls=False) as server:
        server.meanwhile = lambda: held.append(sender.connection is not None)
        use(settings, f"smtp://localhost:{server.port}", server.port)
        send()

    assert held == [False]


@pytest.mark.full
@pytest.mark.django_db
def test_the_test_mail_says_what_the_proxy_did_and_whom_it_does_not_trust(
    end: ssl.SSLContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads(monkeypatch, "other.example.com", PUBLIC)
    rest = Rest.of(make.user(*Capability, email="ana@example.com"))
    for says, words in (
        (b"HTTP/1.1 403 No\r\n\r\n", f"refuses to connect to {PUBLIC} (403)"),
        (b"HTTP/1.1 407 Who of-secrecy\r\n\r\n", "requires a valid user and password (407)"),
        (None, "The certificate of other.example.com:465 is not trusted"),
    ):
        cache.clear()
        with mail_server(end, from_the_start=True) as server, forward_proxy(server.port, says=says) as proxy:
            use(settings, f"smtps://{LOGIN}@other.example.com", proxy.port)
            told = rest.post("/workspace/test-mail").json()

        assert told["sent"] is False
        assert words in told["detail"]
        assert SECRET not in told["detail"]
        assert server.mails == []


def test_a_server_that_does_not_offer_tls_is_sent_neither_password_nor_mail(
    end: ssl.SSLContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads(monkeypatch, NAME, PUBLIC)
    with mail_server(end, offers_tls=False) as server, forward_proxy(server.port) as proxy:
        use(settings, f"smtp+tls://{LOGIN}@{NAME}", proxy.port)
        with pytest.raises(OSError, match="STARTTLS"):
            send()

    assert (server.mails, server.logins) == ([], [])
    assert {line.split()[0].lower() for line in server.plain} == {"ehlo", "quit"}


@pytest.mark.full
def test_mail_goes_through_squid_to_the_port_its_rules_allow(
    end: ssl.SSLContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads(monkeypatch, NAME, PUBLIC)
    user, _, secret = USER_AND_SECRET.partition(":")
    with ExitStack() as stack:
        server = stack.enter_context(mail_server(end))
        beyond = stack.enter_context(forward_proxy(server.port))
        between = stack.enter_context(squid(beyond.port, user, secret))
        use(settings, f"smtp+tls://{LOGIN}@{NAME}", between.port)
        send()
        took(server)
        assert beyond.asked == [f"{PUBLIC}:587"]

        use(settings, f"smtp+tls://{LOGIN}@{NAME}:2525", between.port)
        with pytest.raises(OSError, match=r"refuses to connect to 93\.184\.215\.14 \(403\)"):
            send()
