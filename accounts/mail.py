"""Sending mail, and the test mail of the settings page."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_network

import httpcore
from django.conf import settings
from django.core.mail import EmailMessage, send_mail
from django.core.mail.backends import smtp

from accounts.models import Attempt, User, WorkspaceSettings
from accounts.queues import released_while_waiting
from accounts.rules import PeopleError
from auditlog.actions import Action
from auditlog.models import Event
from wire.background import Deadline
from wire.guard import Guard, open_for_tls, tls

# Private networks. The mail server may have an address in these networks, because only the operator can set its URL.
# For such an address, the gateway connects without the outbound proxy.
INSIDE = tuple(
    map(
        ip_network,
        (
            "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
            "::1/128", "fc00::/7", "fe80::/10",
        ),
    )
)  # fmt: skip


class EmailBackend(smtp.EmailBackend):
    """Sends mail to the mail server in GATEWAY_EMAIL_URL. With TLS, it uses the outbound proxy, if there is one."""

    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        """Return the SMTP class. With TLS and an outbound proxy, the class connects through the proxy."""
        if settings.OUTBOUND_PROXY is None or not (self.use_ssl or self.use_tls):
            return super().connection_class
        return _TunnelledSmtps if self.use_ssl else _TunnelledSmtp

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """Return the TLS context that verifies the mail server."""
        return tls()

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Send the mails and return their number. Raises OSError.

        Sending may be slow, so this thread's database connection is released meanwhile (`released_while_waiting`).
        """
        try:
            with released_while_waiting():
                return super().send_messages(email_messages)
        except OSError:  # An untrusted certificate is an OSError and a ValueError.
            raise
        except ValueError as error:  # Not every address that forms accept can have mail, such as one with a dotless i.
            raise OSError(str(error)) from error

    def open(self) -> bool | None:
        """Open an SMTP connection and return True. Return False if one is open already. Raises OSError."""
        try:
            return super().open()
        except OSError:
            with suppress(OSError):
                self.close()  # Otherwise a connection that could not start TLS stays open until the next call.
            raise


class _TunnelledSmtp(smtplib.SMTP):
    """SMTP through the outbound proxy."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        guard, deadline = Guard((*INSIDE, *settings.PRIVATE_UPSTREAMS), proxy=settings.OUTBOUND_PROXY), Deadline()
        deadline.set(timeout)
        try:
            stream = open_for_tls(guard, host, port, deadline)
        except httpcore.TimeoutException:
            raise TimeoutError("timed out") from None
        except httpcore.NetworkError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise (cause or OSError(str(error) or "the connection broke")) from None
        line: socket.socket = stream.get_extra_info("socket")
        if isinstance(line, ssl.SSLSocket):  # Python cannot start TLS inside TLS on a socket.
            stream.close()
            raise OSError("mail cannot use an https:// outbound proxy, only an http:// proxy")
        line.settimeout(timeout)
        return line


class _TunnelledSmtps(smtplib.SMTP_SSL, _TunnelledSmtp):
    """SMTP over TLS from the start, through the outbound proxy."""


# Send a test mail, and report whether the mail server accepted it, or why not.

AT_MOST, WITHIN_S = 5, 600

BODY = """This is a test mail of {name} at {url}.

{by} requested this test. If you can read this mail, invitations and password resets will arrive too.
"""


class NoMailServer(PeopleError):
    """No mail server is set. Start the gateway with GATEWAY_EMAIL_URL."""


class TooManyTestMails(PeopleError):
    """At most five test mails can be sent in ten minutes. Try again later."""

    seconds = WITHIN_S


@dataclass(frozen=True, slots=True)
class MailTestResult:
    """The result of a test mail: `sent` is True if the mail was accepted, `detail` is an explanation in words."""

    sent: bool
    to: str
    detail: str


def send_test_mail(*, by: User) -> MailTestResult:
    """Send a test mail to the person `by`, and return the result. Raises NoMailServer or TooManyTestMails."""
    if not settings.MAIL_SERVER:
        raise NoMailServer(NoMailServer.__doc__)
    _count(by)
    workspace = WorkspaceSettings.load()
    text = BODY.format(name=workspace.name, url=settings.PUBLIC_URL, by=by.email)
    try:
        send_mail(f"Test mail of {workspace.name}", text, None, [by.email])
    except OSError as error:  # Also covers smtplib's errors.
        outcome = MailTestResult(sent=False, to=by.email, detail=reason(error))
    else:
        outcome = MailTestResult(sent=True, to=by.email, detail=f"Sent to {by.email} through {settings.MAIL_SERVER}.")
    changes = {"to": by.email, "sent": outcome.sent, "detail": outcome.detail}
    Event.objects.record(Action.WORKSPACE_MAIL_TESTED, workspace, by=by, changes=changes)
    return outcome


def _count(by: User) -> None:
    if Attempt.objects.note(f"test-mail:{by.pk}", window=timedelta(seconds=WITHIN_S)) > AT_MOST:
        raise TooManyTestMails(TooManyTestMails.__doc__)


# The reason why a mail could not be sent, by exception; the first matching class is used.
REASONS: dict[type[OSError], str] = {
    smtplib.SMTPAuthenticationError: "{server} refused the user name or the password: {said}",
    smtplib.SMTPSenderRefused: "{server} refuses the sender {sender} (GATEWAY_EMAIL_FROM): {said}",
    smtplib.SMTPRecipientsRefused: "{server} refused the recipient: {said}",
    smtplib.SMTPResponseException: "{server} refused the mail: {said}",
    smtplib.SMTPNotSupportedError: "{server} does not support what GATEWAY_EMAIL_URL requires: {said}",
    smtplib.SMTPServerDisconnected: "{server} closed the connection. {schemes}",
    ssl.SSLCertVerificationError: "The certificate of {server} is not trusted: {said}",
    ssl.SSLError: "{server} does not speak TLS as expected. {schemes}",
    socket.gaierror: "The name {server} does not resolve.",
    TimeoutError: "{server} did not answer in time.",
    ConnectionRefusedError: "Nothing listens at {server}.",
    OSError: "{server} could not be reached: {said}",
}
SCHEMES = "Use smtps:// for TLS from the start, smtp+tls:// for STARTTLS, smtp:// for no TLS."


def reason(error: OSError) -> str:
    """Return the reason why a mail could not be sent, with the mail server's reply if it refused the mail."""
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
