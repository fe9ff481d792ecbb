"""Mails about apps that wait for approval: to those who may approve them, and to the person who asked."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.db.models import QuerySet
from django.urls import reverse
from django.utils import timezone

from accounts.asking import mail_people
from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability

if TYPE_CHECKING:
    from hosts.models import Host

MOST_A_DAY = 8  # New apps of one person; further ones are on dashboards only.

ASKED = """{person} wants to connect an app that calls itself "{app}". It is new here, and new apps need approval.

Approve it, or leave it disabled:

{link}
"""
APPROVED = """{by} approved {app}. Connect it again from the app.

{link}
"""


def approval_asked_for(host: Host, by: User) -> None:
    """Mail the people who may approve this app."""
    day = timezone.now() - timedelta(days=1)
    if _appeared().filter(actor_id=by.pk, created_at__gte=day).count() <= MOST_A_DAY:
        text = ASKED.format(person=by.email, app=host.name, link=_link("hosts:detail", host.pk))
        mail_people(f"{host.name} waits for approval", text, by.addresses_of_others(Capability.HOSTS_TOGGLE))


def approved(host: Host, by: User) -> None:
    """Mail the person who asked for this app, unless they approved it themselves."""
    asked = _appeared().filter(target_type="host", target_id=str(host.pk)).values("actor_id")
    to = User.objects.filter(pk__in=asked, is_active=True).exclude(pk=by.pk).values_list("email", flat=True)
    text = APPROVED.format(by=by.email, app=host.name, link=_link("oauth:client"))
    mail_people(f"{host.name} is approved", text, list(to))


def _appeared() -> QuerySet[Event]:
    return Event.objects.filter(action=Action.HOST_APPEARED)


def _link(name: str, *args: object) -> str:
    return f"{settings.PUBLIC_URL}{reverse(name, args=args)}"
