"""Send a test mail, and report whether the mail server accepted it, or why not."""

from __future__ import annotations

import smtplib
import socket
import ssl
from dataclasses import dataclass

from django.conf import settings
from django.core.cache import cache
from django.core.mail import send_mail

from accounts.models import User, WorkspaceSettings
from accounts.rules import PeopleError
from accounts.strangers import released_while_waiting
from auditlog.actions import Action
from auditlog.models import Event

AT_MOST, WITHIN_S = 5, 600

BODY = """This is a test mail of {name} at {url}.

{by} asked for it on the page of the workspace's settings. If you read it, invitations and password resets arrive too.
"""


class NoMailServer(PeopleError):
    """No mail server is set. Start the gateway with GATEWAY_EMAIL_URL."""


class TooManyTestMails(PeopleError):
    """Five test mails in ten minutes are enough. Wait a little."""

    seconds = WITHIN_S


@dataclass(frozen=True, slots=True)
class MailTestResult:
    """Result of a test mail: if it was sent, to whom, and what happened in words."""

    sent: bool
    to: str
    detail: str


def send_test_mail(*, by: User) -> MailTestResult:
    """Send a test mail to `by` only. Raises NoMailServer, or TooManyTestMails."""
    if not settings.MAIL_SERVER:
        raise NoMailServer(NoMailServer.__doc__)
    _count(by)
    workspace = WorkspaceSettings.load()
    text = BODY.format(name=workspace.name, url=settings.PUBLIC_URL, by=by.email)
    try:
        with released_while_waiting():
            send_mail(f"Test mail of {workspace.name}", text, None, [by.email])
    except OSError as error:  # Also covers smtplib's errors.
        outcome = MailTestResult(sent=False, to=by.email, detail=reason(error))
    else:
        outcome = MailTestResult(sent=True, to=by.email, detail=f"Sent to {by.email} through {settings.MAIL_SERVER}.")
    changes = {"to": by.email, "sent": outcome.sent, "detail": outcome.detail}
    Event.objects.record(Action.WORKSPACE_MAIL_TESTED, workspace, by=by, changes=changes)
    return outcome


def _count(by: User) -> None:
    key = f"test-mail:{by.pk}"
    cache.add(key, 0, timeout=WITHIN_S)
    if cache.incr(key) > AT_MOST:
        raise TooManyTestMails(TooManyTestMails.__doc__)


# Why a mail was refused, by exception; the first match is used.
REASONS: dict[type[OSError], str] = {
    smtplib.SMTPAuthenticationError: "{server} refused the user name or the password: {said}",
    smtplib.SMTPSenderRefused: "{server} does not send for {sender} (GATEWAY_EMAIL_FROM): {said}",
    smtplib.SMTPRecipientsRefused: "{server} refused the recipient: {said}",
    smtplib.SMTPResponseException: "{server} refused the mail: {said}",
    smtplib.SMTPNotSupportedError: "{server} lacks what GATEWAY_EMAIL_URL asks for: {said}",
    smtplib.SMTPServerDisconnected: "{server} hung up. {schemes}",
    ssl.SSLCertVerificationError: "The certificate of {server} is not trusted: {said}",
    ssl.SSLError: "{server} does not speak TLS as expected. {schemes}",
    socket.gaierror: "The name of {server} is not known here.",
    TimeoutError: "{server} did not answer in time.",
    ConnectionRefusedError: "Nothing listens at {server}.",
    OSError: "{server} could not be reached: {said}",
}
SCHEMES = "smtps:// is TLS from the start, smtp+tls:// is STARTTLS, smtp:// is neither."


def reason(error: OSError) -> str:
    """Return why a mail was refused, as a sentence that includes the mail server's reply."""
    words = next(words for kind, words in REASONS.items() if isinstance(error, kind))
    reply, sender = _server_reply(error), settings.DEFAULT_FROM_EMAIL
    return words.format(server=settings.MAIL_SERVER, sender=sender, said=reply, schemes=SCHEMES)


def _server_reply(error: OSError) -> str:
    """Return the mail server's reply, or the system's error, on one line."""
    match error:
        case smtplib.SMTPRecipientsRefused():
            words = " ".join(f"{code} {_text(text)}" for code, text in error.recipients.values())
        case smtplib.SMTPResponseException():
            words = f"{error.smtp_code} {_text(error.smtp_error)}"
        case ssl.SSLCertVerificationError():
            words = f"{error.verify_message}."
        case _:
            words = f"{error.strerror or error}."
    return " ".join(words.split())[:300]


def _text(reply: bytes | str) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else reply
