"""The mail to those who manage people when somebody asks for a capability."""

from __future__ import annotations

import logging
from uuid import UUID

from django.conf import settings
from django.core.mail import EmailMessage
from django.urls import reverse

from accounts.strangers import released_while_waiting
from capabilities import Capability

logger = logging.getLogger(__name__)

TEXT = """{person} asks for the capability "{label}".

{allows}

A person has the capabilities of their role. Give this person another role:

{link}
"""


def mail_request(pk: UUID, person: str, capability: Capability, to: list[str]) -> None:
    """Tell the people `to` that `person` asks for `capability`."""
    if not (to and settings.MAIL_SERVER):
        return
    link = f"{settings.PUBLIC_URL}{reverse('accounts:person', args=[pk])}"
    text = TEXT.format(person=person, label=capability.label, allows=capability.allows, link=link)
    try:
        with released_while_waiting():
            EmailMessage(f"{person} asks for {capability.label}", text, bcc=to).send()
    except OSError:  # What smtplib raises is one too.
        logger.exception("mail not sent")
