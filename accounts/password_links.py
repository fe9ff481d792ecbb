"""Links with which people set a password: in an invitation, or to reset a forgotten password."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.core.mail import EmailMessage
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.http import base36_to_int

from accounts.rules import must_sign_in_at_organisation
from sso.enforcement import must_sign_in_there
from ui.databases import give_back

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

RESET = timedelta(hours=1)
NO_MAIL = "This installation has no mail server, so nothing can be mailed."

_mailers = ThreadPoolExecutor(2, thread_name_prefix="reset-mail")

_BEGINNING = datetime(2001, 1, 1)  # noqa: DTZ001  (Django's tokens count seconds from this date, without a zone)


class LinkTokens(PasswordResetTokenGenerator):
    """Single-use tokens, valid for one hour, for an active person who has joined.

    A token becomes invalid when the person is deactivated or signed out everywhere. The tokens of a person who must
    sign in at the organisation are invalid.
    """

    def _make_hash_value(self, user: Any, timestamp: int) -> str:
        return f"{super()._make_hash_value(user, timestamp)}{user.session_epoch}"

    def check_token(self, user: Any, token: str | None) -> bool:
        return bool(
            user
            and user.status == "active"
            and super().check_token(user, token)
            and self._is_recent(token)
            and not must_sign_in_there(user)
        )

    def _is_recent(self, token: Any) -> bool:
        made_at = _BEGINNING + timedelta(seconds=base36_to_int(token.partition("-")[0]))
        return self._now() - made_at <= RESET


class JoinTokens(LinkTokens):
    """Single-use tokens of invitations, valid until the person's `invitation_expires_at`.

    A person who must sign in at the organisation joins by signing in there, and sets no password. The token of such a
    person only identifies the invitation.
    """

    key_salt = "accounts.password_links.JoinTokens"

    def check_token(self, user: Any, token: str | None) -> bool:
        return bool(user and user.status == "invited" and PasswordResetTokenGenerator.check_token(self, user, token))


def password_link(person: User, base: str = "") -> str:
    """Return a single-use link for setting a password, valid for one hour.

    For a person who has not joined, return the invitation link.
    """
    if not person.has_joined:
        return invitation_link(person, base)
    key = {"uidb36": person.pk.hex, "key": LinkTokens().make_token(person)}
    return f"{base or settings.PUBLIC_URL}{reverse('account_reset_password_from_key', kwargs=key)}"


def invitation_link(person: User, base: str = "") -> str:
    """Return an invited person's single-use link for joining, which works until the invitation expires."""
    path = reverse("accounts:invitation", args=[f"{person.pk.hex}-{JoinTokens().make_token(person)}"])
    return f"{base or settings.PUBLIC_URL}{path}"


def invitation_context(person: User, link: str, *, by: User | None) -> dict[str, Any]:
    """Return the context of the mail that invites `person`. If the mail answers a reset request, `by` is None."""
    return {"person": person, "link": link, "by": by, "joins_there": must_sign_in_at_organisation(person)}


def mail_invitation(person: User, link: str, *, by: User) -> bool:
    """Mail the link to `person`; return True if a mail server accepted the mail."""
    return sent(_mail("invitation", person, invitation_context(person, link, by=by))) and bool(settings.MAIL_SERVER)


def reset_mail(person: User) -> EmailMessage | None:
    """Return the mail that answers a request for a password reset, or None.

    A person with a password gets a link to set a new one. A person with an open invitation gets the invitation again.
    Return None for a person who must sign in at the organisation, and for a person with neither password nor open
    invitation.
    """
    if must_sign_in_there(person):
        return None
    if person.has_usable_password():
        return _mail("password_reset_key", person, {"password_reset_url": password_link(person)})
    if person.status == "invited":
        return _mail("invitation", person, invitation_context(person, invitation_link(person), by=None))
    return None


def mail_reset_soon(person: User) -> None:
    """Send `reset_mail` in the background, so that response times do not reveal whether an account exists."""
    _mailers.submit(_mail_reset, person)


def _mail_reset(person: User) -> None:
    try:
        if (mail := reset_mail(person)) is not None:
            mail.send()
    except Exception:  # Nobody reads the result of a background task.
        logger.exception("mail not sent")
    finally:
        give_back()


def _mail(name: str, person: User, context: dict[str, Any]) -> EmailMessage:
    subject = render_to_string(f"account/email/{name}_subject.txt", context).strip()
    return EmailMessage(subject, render_to_string(f"account/email/{name}_message.txt", context), to=[person.email])


def sent(mail: EmailMessage) -> bool:
    """Send the mail; return False, and log the reason, if it could not be sent."""
    try:
        mail.send()
    except OSError:  # Also covers smtplib's errors.
        logger.exception("mail not sent")
        return False
    return True
