"""Mails to the owners of tokens."""

import logging
from datetime import UTC, datetime

from django.conf import settings
from django.core.mail import send_mail
from django.template.loader import render_to_string
from django.urls import reverse

logger = logging.getLogger(__name__)


def new_secret_asked_for(owner: str, token: str, by: str, works_until: datetime | None, *, until_used: bool) -> None:
    """Tell `owner` by mail that the person `by` requested a new secret for `token`, which the owner has to collect.

    `works_until` is the end of the old secret; None if it has ended. With `until_used`, it may end earlier: when the
    new secret is first used.
    """
    until = f"{works_until.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if works_until else ""
    # The mail does not contain the secret, and its link requires a sign-in.
    context = {"token": token, "by": by, "until": until, "until_used": until_used}
    context["link"] = f"{settings.PUBLIC_URL}{reverse('tokens:list')}"
    subject = f"Collect the new token in place of {token}"
    try:
        send_mail(subject, render_to_string("tokens/asked_for_new.txt", context), None, [owner])
    except OSError:  # Includes smtplib's exceptions.
        logger.exception("mail not sent")
