"""Notifications of new matters, of answers to requests, and of tokens, sign-ins and grants that end soon.

A channel gets a message about a matter only if the matter has a thing that was not yet reported to this channel.
Incidents, approvals and answers to requests are reported at once. Other matters are reported at most once a day.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.urls import reverse
from django.utils import timezone

from accounts.models import Attempt, User, permissions_of
from accounts.models.attempts import HOUR
from accounts.queues import released_while_waiting
from attention.delivery import ChannelError, Parcel
from attention.matters import BY_NAME, MATTERS, NAMED, Matter, OpenMatter
from attention.models import LONGEST_ERROR, Channel, Notification
from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import including
from gateways.models import AccessRequest, GatewayGrant, ToolGrant
from hosts.models import Host
from servers.models import Identity
from sinks.receivers import Undelivered, backoff
from tokens.models import Token, TokenKind
from ui.templatetags.ui import marked

logger = logging.getLogger(__name__)

OUTCOMES, ENDINGS, REVIEWS = "outcomes", "endings", "reviews"
# Notifications besides MATTERS.
PERSONAL = {
    OUTCOMES: "Answers to your requests",
    ENDINGS: "Your tokens, sign-ins and access, before they end",
    REVIEWS: "Access reviews that you answer or started",
}

A_DAY = timedelta(days=1)
PAUSE = timedelta(minutes=10)  # Shortest time between two messages about a matter, if the matter is reported at once.
URGENT_PAUSE, MOST_URGENT_A_DAY = timedelta(minutes=1), 100
MOST_A_DAY = 8  # Messages of one matter to one channel within 24 hours; further ones wait.
STAGES = (14, 3, 1)  # Days before something ends.
RECENT = timedelta(hours=1)  # Older events are not reported.
KEPT = timedelta(days=30)
LEASE = timedelta(minutes=2)  # After this time, another process may try to deliver the message again.
AT_ONCE, THREADS = 16, 4  # Messages that one run delivers, and the number of threads that deliver them.
MOST_FAILURES = 24  # A message is given up after this many failures, about 70 minutes after the first.
LONGEST_NAME = 80
MOST_TESTS = 10  # Test messages per person and hour.


def link_to(path: str) -> str:
    return f"{settings.PUBLIC_URL}{path}"


# New matters.


def tell_at_once() -> int:
    """Queue messages on incidents, approvals and answers to requests; return the number of messages."""
    return run_each([*(partial(_tell, matter) for matter in MATTERS if matter.at_once), tell_outcomes])


def tell_daily() -> int:
    """Queue the messages that are sent at most once a day; return the number of messages.

    They are about the matters without `at_once`, and about tokens, sign-ins and grants that end soon.
    """
    daily = [matter for matter in MATTERS if not matter.at_once and not matter.is_own]
    return run_each([*(partial(_tell, matter) for matter in daily), tell_endings])


def run_each(parts: Iterable[Callable[[], int]]) -> int:
    """Call all `parts`, even if some fail, and return the sum. Raises ExceptionGroup if some fail."""
    number, errors = 0, list[Exception]()
    for part in parts:
        try:
            number += part()
        except Exception as error:  # noqa: BLE001  (raised below)
            errors.append(error)
    if errors:
        raise ExceptionGroup("some messages could not be queued", errors)
    return number


def _tell(matter: Matter) -> int:
    found, latest = matter.find(None), _latest(matter)
    for message in latest.values():
        # Forget things that were resolved, so that they are reported again if they recur.
        left = [thing for thing in message.things if thing in found.things]
        if left != message.things:
            Notification.objects.filter(pk=message.pk).update(things=left)
            message.things = left
    if not found.number:
        return 0
    number = 0
    for channel in _channels_for(matter):
        theirs = matter.find(channel.owner) if matter.also and channel.owner else found
        number += _tell_channel(channel, matter, theirs, latest.get(channel.pk))
    return number


def _latest(matter: Matter) -> dict[UUID, Notification]:
    """Return each channel's newest message about this matter, by the id of the channel."""
    newest = Notification.objects.filter(matter=matter.name).order_by("channel_id", "-id").distinct("channel_id")
    return {message.channel_id: message for message in newest}


def _channels_for(matter: Matter) -> list[Channel]:
    """Return the channels of the workspace, and of all active people who may act on this matter."""
    people = people_with(matter.may)
    if matter.also:
        people += [person for person in matter.also() if person not in people]
    found = list(Channel.objects.filter(Q(owner=None) | Q(owner__in=people)).select_related("owner"))
    return [*found, *_missing_mail(people, found)]


def people_with(capabilities: Sequence[Capability]) -> list[User]:
    """Return the active people with any of these capabilities."""
    holding = Q(role__permissions__in=permissions_of(including(capabilities))) | Q(is_superuser=True)
    people = User.objects.filter(holding, is_active=True).distinct()
    return [person for person in people if person.status == "active"]


def channels_of(person: User) -> list[Channel]:
    """Return the channels of a person, and create their mail channel if it is missing."""
    found = list(Channel.objects.filter(owner=person).select_related("owner"))
    return [*found, *_missing_mail([person], found)]


def _missing_mail(people: Sequence[User], found: Sequence[Channel]) -> list[Channel]:
    """Create and return a mail channel for each person who has no mail channel in `found`.

    Without a mail server, create no channel.
    """
    having = {channel.owner_id for channel in found if channel.is_own_mail}
    missing = [person for person in people if person.pk not in having] if settings.MAIL_SERVER else []
    return [Channel.objects.mail_of(person) for person in missing]


def _tell_channel(channel: Channel, matter: Matter, found: OpenMatter, last: Notification | None) -> int:
    new = [thing for thing in found.things if last is None or thing not in last.things]
    if not new or not _is_due(channel, matter, last):
        return 0
    names = [plain_name(found.things[thing]) for thing in new[:NAMED]]
    more = [f"and {len(new) - len(names):,} more"] if len(new) > len(names) else []
    message = channel.send(
        matter.name,
        matter.sentence(found.number),
        "\n".join([*names, *more]),
        link_to(found.link),
        things=list(found.things),
        at_once=matter.at_once,
    )
    return int(message is not None)


def _is_due(channel: Channel, matter: Matter, last: Notification | None) -> bool:
    """True if the channel may get another message about this matter now; `last` is the previous one, if any."""
    if last is None:
        return True
    now = timezone.now()
    if not matter.at_once:
        return now - last.created_at >= A_DAY
    pause, most = (URGENT_PAUSE, MOST_URGENT_A_DAY) if matter.is_urgent else (PAUSE, MOST_A_DAY)
    if now - last.created_at < pause:
        return False
    day = channel.messages.filter(matter=matter.name, created_at__gt=now - A_DAY)
    return now - last.created_at >= A_DAY or day.count() < most


# Outcomes: answers to people's requests.


def tell_outcomes() -> int:
    """Queue messages about requests that were answered in the last hour and not reported yet; return how many."""
    answers = {Action.HOST_APPROVED: _app_approved, Action.HOST_ARCHIVED: _app_refused}
    answers |= {Action.ACCESS_REQUEST_APPROVED: _access_decided, Action.ACCESS_REQUEST_DECLINED: _access_decided}
    answers |= {Action.USER_ROLE_CHANGED: _capability_given, Action.USER_REQUEST_DECLINED: _capability_declined}
    since = timezone.now() - RECENT
    # Thousands of people may get another role at once, but only those who asked for a capability are notified.
    is_told = ~Q(action=Action.USER_ROLE_CHANGED) | Q(changes__has_key="granted")
    events = Event.objects.filter(is_told, action__in=list(answers), created_at__gte=since).order_by("id")
    by_key = {f"event:{event.uid}": event for event in events}
    told = set(Notification.objects.filter(key__in=by_key).values_list("key", flat=True))
    number = 0
    for key, event in by_key.items():
        if key not in told and (answer := answers[Action(event.action)](event)):
            person, subject, text, path = answer
            number += send_to(person, OUTCOMES, subject, text, path, key=key)
    return number


def send_to(person: User, matter: str, subject: str, text: str, path: str, *, key: str | None = None) -> int:
    """Queue a message to all channels of a person, and return how many were queued."""
    sent = [channel.send(matter, subject, text, link_to(path), key=key) for channel in channels_of(person)]
    return len([message for message in sent if message])


type Answer = tuple[User, str, str, str] | None


def _app_approved(event: Event) -> Answer:
    name = _name(event)
    text = f"{event.actor_email} approved {name}. Connect again from the app."
    return _to_who_asked(event, f"{name} is approved", text)


def _app_refused(event: Event) -> Answer:
    """Return the message to the person whose app was archived while it waited for approval.

    Return None if the app did not wait for approval, or if nobody is to be notified (see `_other_than_actor`).
    """
    if not Host.objects.filter(pk=event.target_id, needs_approval=True, approved_at=None).exists():
        return None
    name = _name(event)
    return _to_who_asked(event, f"{name} is not approved", f"{event.actor_email} archived {name}. Ask them why.")


def _to_who_asked(event: Event, subject: str, text: str) -> Answer:
    appeared = Event.objects.filter(action=Action.HOST_APPEARED, target_type="host", target_id=event.target_id)
    person = _other_than_actor(event, appeared.values_list("actor_id", flat=True).first())
    return (person, subject, text, reverse("oauth:client")) if person else None


def _capability_given(event: Event) -> Answer:
    """Return the message to a person whose new role has capabilities that the person asked for.

    Return None if the person has lost all these capabilities.
    """
    person = _other_than_actor(event, event.target_id)
    granted = Capability.named(event.changes["granted"][1])
    labels = [one.label for one in granted if person and person.has_perm(one)]
    if person is None or not labels:
        return None
    text = f"{event.actor_email} gave you a role with: {', '.join(sorted(labels))}."
    return person, "Your request was granted", text, reverse("overview")


def _capability_declined(event: Event) -> Answer:
    person = _other_than_actor(event, event.target_id)
    labels = [one.label for one in Capability.named([event.changes["capability"][0]])]
    text = f"{event.actor_email} declined your request: {', '.join(labels)}."
    return (person, "Your request was declined", text, reverse("accounts:profile")) if person else None


def _access_decided(event: Event) -> Answer:
    request = AccessRequest.objects.select_related("gateway", "tool_set", "user").filter(pk=event.target_id).first()
    if request is None or not request.user.is_active:
        return None
    is_approved = event.action == Action.ACCESS_REQUEST_APPROVED
    verb, end = ("approved", f", for {request.days} days") if is_approved else ("declined", "")
    text = f"{event.actor_email} {verb} it{end}."
    subject = f"Your request for {plain_name(request.what)} was {verb}"
    return request.user, subject, text, reverse("gateways:access_request", args=[request.pk])


def _other_than_actor(event: Event, pk: UUID | str | None) -> User | None:
    """Return the person with the id `pk`; None if that person is inactive, unknown or the event's actor."""
    if not pk or str(pk) == str(event.actor_id):
        return None
    return User.objects.filter(pk=pk, is_active=True).first()


def _name(event: Event) -> str:
    return plain_name(event.target_label)


def plain_name(name: str) -> str:
    """Return a name shortened to one line, with invisible characters shown as code points."""
    return " ".join(marked(name).split())[:LONGEST_NAME]


# Tokens, sign-ins and grants that end.


def tell_endings() -> int:
    """Queue messages to people whose tokens, sign-ins or grants end in 14, 3 or 1 days; return how many were queued.

    A person is notified at most once a day.
    """
    today = timezone.now().date()
    ending: dict[UUID, list[tuple[datetime, str, str]]] = {}  # Times, names, and pages that list the thing.
    found = [(reverse("tokens:list"), _ending(_tokens_with_expiry(), "connection__user"))]
    found += [(reverse("connections:mine"), _ending(_sign_ins(), "owner"))]
    for grants in (GatewayGrant.objects.live(), ToolGrant.objects.live().filter(user__isnull=False)):
        named = grants.filter(gateway__archived_at=None).annotate(named=F("gateway__name"), begun=F("given_at"))
        found += [(reverse("gateways:access"), _ending(named, "user", "ends_at"))]
    for path, things in found:
        for owner, at, name in things:
            ending.setdefault(owner, []).append((at, name, path))
    people = User.objects.in_bulk(list(ending))
    number = 0
    for pk, endings in ending.items():
        if (person := people.get(pk)) and person.status == "active":
            lines = [f"{plain_name(name)}: {at:%Y-%m-%d %H:%M} UTC" for at, name, _ in sorted(endings)]
            first = min(endings)[0].date() - today
            days = f"{first.days} day{'' if first.days == 1 else 's'}"
            subject = f"{lines[0].rpartition(': ')[0]} ends in {days}" if len(lines) == 1 else ""
            subject = subject or f"{len(lines)} tokens, sign-ins or grants end soon, the first in {days}"
            key = f"{ENDINGS}:{today}"
            if not Notification.objects.filter(channel__owner=person, key=key).exists():
                number += send_to(person, ENDINGS, subject, "\n".join(lines), min(endings)[2], key=key)
    return number


def _tokens_with_expiry() -> models.QuerySet[Token]:
    live = Token.objects.live().filter(kind=TokenKind.ACCESS, connection__revoked_at=None)
    return live.annotate(named=F("name"), begun=F("created_at"))


def _sign_ins() -> models.QuerySet[Identity]:
    """Return people's sign-ins at servers, except sign-ins that a refresh token renews."""
    mine = Identity.objects.usable().filter(owner__isnull=False, grant__isnull=False, grant__refresh_ciphertext=None)
    return mine.annotate(named=F("server__name"), begun=F("updated_at"))


def _ending(rows: models.QuerySet[Any], owner: str, end: str = "expires_at") -> list[tuple[UUID, datetime, str]]:
    """Return owner, end and name of the rows that end in exactly 14, 3 or 1 days from today (STAGES)."""
    today, found = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0), []
    for days in STAGES:
        since = today + timedelta(days=days)
        on = rows.filter(**{f"{end}__gte": since, f"{end}__lt": since + A_DAY})
        # A sign-in for 20 hours is not announced 1 day ahead.
        early = on.filter(begun__lte=F(end) - timedelta(days=days))
        found += list(early.values_list(owner, end, "named"))
    return found


# Delivery.


def deliver_due() -> int:
    """Deliver messages that are due, and return how many were accepted. Holds no database connection while sending."""
    claimed = list(_claimed())
    if not claimed:
        return 0
    with released_while_waiting(), ThreadPoolExecutor(THREADS, "attention") as pool:
        results = list(pool.map(_delivered, [parcel for _, parcel in claimed]))
    for (message, _), failure in zip(claimed, results, strict=True):
        _note(message, failure)
    return results.count(None)


def _claimed() -> Iterator[tuple[Notification, Parcel]]:
    now = timezone.now()
    with transaction.atomic():
        due = (
            Notification.objects.filter(due_at__lte=now)
            .order_by("due_at")
            .select_for_update(skip_locked=True, of=("self",))
        )
        messages = list(due.select_related("channel__owner")[:AT_ONCE])
        Notification.objects.filter(pk__in=[message.pk for message in messages]).update(due_at=now + LEASE)
    for message in messages:
        if not _is_wanted(message):
            Notification.objects.filter(pk=message.pk).update(due_at=None)
            continue
        try:
            yield message, Parcel.of(message.channel, message)
        except Undelivered as failure:
            _note(message, failure)


def _is_wanted(message: Notification) -> bool:
    """Return whether a message that waited may still be sent.

    Return False if its channel is now disabled, if the channel now mutes the matter, or if the channel's owner may no
    longer act on the matter.
    """
    channel, matter = message.channel, BY_NAME.get(message.matter)
    if not channel.enabled or message.matter in channel.muted:
        return False
    owner = channel.owner
    return owner is None or (owner.is_active and (matter is None or matter.is_for(owner)))


def _delivered(parcel: Parcel) -> Undelivered | None:
    try:
        parcel.deliver()
    except Undelivered as failure:
        return failure
    except Exception:
        logger.exception("a notification could not be delivered", extra={"kind": parcel.kind})
        return Undelivered("An unexpected error, which the gateway has logged.")
    return None


def _note(message: Notification, failure: Undelivered | None) -> None:
    """Record the outcome of a delivery, and when to try again."""
    now, rows, channel = (
        timezone.now(),
        Notification.objects.filter(pk=message.pk),
        Channel.objects.filter(pk=message.channel_id),
    )
    if failure is None:
        rows.update(sent_at=now, due_at=None)
        channel.update(last_sent_at=now, last_error="")
        return
    failures = message.failures + 1
    wait = timedelta(seconds=backoff(failures + 2, random.random()))  # noqa: S311  no secret
    given_up = failure.for_good or failures >= MOST_FAILURES
    rows.update(failures=failures, due_at=None if given_up else now + wait)
    channel.update(last_error=str(failure)[:LONGEST_ERROR], last_error_at=now)


class TooManyTests(ChannelError):
    """At most ten test messages can be sent in an hour. Try again later."""

    seconds = int(HOUR.total_seconds())


def send_test(channel: Channel, *, by: User) -> str:
    """Send a test message now. Return the reason if it was not delivered, otherwise "". Raises TooManyTests."""
    # The limit is per person, because channels can be removed and added again.
    if Attempt.objects.note(f"channel-test:{by.pk}", window=HOUR) > MOST_TESTS:
        raise TooManyTests(TooManyTests.__doc__)
    message = Notification(
        matter="test", subject="Test message", text=f"From {settings.PUBLIC_URL}.", link=link_to("/attention/")
    )
    try:
        parcel = Parcel.of(channel, message)
        with released_while_waiting():
            parcel.deliver()
    except Undelivered as failure:
        return str(failure)
    Channel.objects.filter(pk=channel.pk).update(last_error="", last_sent_at=timezone.now())
    return ""


def drop_old(now: datetime) -> int:
    """Delete messages that are over 30 days old, and were sent or given up.

    A deleted message no longer shows that a matter was reported. If the matter still needs attention, it is therefore
    reported again.
    """
    return int(Notification.objects.filter(created_at__lt=now - KEPT, due_at=None).delete()[0])


def choices_for(person: User, *, for_workspace: bool) -> list[tuple[str, str]]:
    """Return name and title of the matters that `person` may choose for their own or the workspace's channel."""
    acting = [(name, matter.title) for name, matter in BY_NAME.items() if not matter.is_own and matter.is_for(person)]
    return acting if for_workspace else [*acting, *PERSONAL.items()]
