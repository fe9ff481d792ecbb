"""A person's own calls, visible without any capability: the list, and pages that wait for a new client's first call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import Http404, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from accounts.models import User
from approvals.models import hold_of
from auditlog.models import ENDINGS, Call, Outcome
from auditlog.outcomes import reason_of
from auditlog.paging import Cursor, page
from auditlog.remedies import ASKABLE
from auditlog.search import SEARCH_LIMIT
from auditlog.why import Detail
from capabilities import NOBODY, own_resource
from connections.models import Connection
from gateways.models import Assignment, Gateway, ToolPolicy
from ui.pages import PAGE_SIZE, AppRequest, moment_of, show, text_of

PATIENCE = timedelta(minutes=5)  # A page polls for this time; then the person must confirm that they still wait.
LOOKED_AT = timedelta(hours=1)  # A call that is older than this does not end a wait.
# Texts for calls that were refused because of the policy of an assignment or because of a disabled feature.
OF_POLICY = "The policy of this gateway blocks this server."
SWITCHED_OFF = {
    "tool_disabled": "This tool is disabled on this gateway.",
    "prompt_disabled": "This prompt is disabled on this gateway.",
    "resource_disabled": "This resource or its template is disabled on this gateway.",
}
# Methods that clients send to introduce themselves or to discover features, not to call anything.
HELLOS = ("initialize", "ping", "server/discover", "GET")
# The filters of My calls, on the newest SEARCH_LIMIT calls: the value in the URL, the label, and the condition.
FILTERS = {
    "": ("All", Q()),
    "tools": ("Tool calls", Q(method="tools/call")),
    "refused": ("Refused", Q(outcome__in=ENDINGS["denied"])),
    "failed": ("Failed", Q(outcome__in=ENDINGS["error"])),
    "ok": ("OK", Q(outcome__in=ENDINGS["ok"])),
}


def own_calls(user: User) -> QuerySet[Call]:
    return Call.objects.filter(user_id=user.pk)


def listed_calls(user: User) -> QuerySet[Call]:
    """Return the person's calls, without the requests by which clients probe for features that are not supported."""
    return own_calls(user).exclude(outcome=Outcome.NOT_OFFERED)


@dataclass(frozen=True)
class OwnCall:
    """One call as shown to the person who made it."""

    call: Call
    policy: str = ""  # Tool policy of the server on the gateway, if unchanged since the call.
    asks_at: str = ""  # Slug of the gateway, if the person may request access that the call lacked.

    @property
    def what(self) -> str:
        """Return the name of the called tool, prompt or resource, otherwise the method."""
        return self.call.feature_name or self.call.method

    @property
    def is_denied(self) -> bool:
        return self.call.outcome in ENDINGS["denied"]

    @property
    def is_ok(self) -> bool:
        return self.call.outcome in ENDINGS["ok"]

    @property
    def cause(self) -> str:
        """Return the reason why the call was refused or failed, as a sentence; empty if it succeeded."""
        reason = None if self.is_ok else reason_of(self.call.outcome, self.call.deny_reason)
        if reason and self.policy and self.call.deny_reason in SWITCHED_OFF:
            return OF_POLICY if self.policy == ToolPolicy.BLOCK_ALL else SWITCHED_OFF[self.call.deny_reason]
        if self.call.deny_reason == "wrong_gateway":  # The row has the token's gateway, not the one that was called.
            own = self.call.gateway_name
            return f"The token works only on {own}, but the URL of the call names another gateway or no gateway."
        if self.call.deny_reason == "gateway_not_reachable":
            ask = "" if self.asks_at else " Ask an administrator."
            return f"{self.call.gateway_name} is not open to you, or your role can only look.{ask}"
        return reason.sentence if reason else ""

    @property
    def reason(self) -> str:
        """Return the logged reason in a few words; empty if there is none."""
        return self.call.why if self.call.deny_reason else ""

    @property
    def is_hello(self) -> bool:
        """True if the client only introduced itself (HELLOS), sent a notification, or probed for a feature."""
        if self.call.method in HELLOS or self.call.method.startswith("notifications/"):
            return not self.is_denied
        return self.call.outcome == Outcome.NOT_OFFERED

    @property
    def client(self) -> str:
        """Return the name that the client gave, otherwise the name of the app or agent."""
        return self.call.client_name or self.call.host_name or "an app or agent"

    @property
    def identity_url(self) -> str:
        """Return the URL of My identities for the connection of the call.

        Empty unless the call was refused because of a missing or unusable credential.
        """
        if not self.call.deny_reason.startswith("identity_") or not self.call.connection_id:
            return ""
        return f"{reverse('connections:mine')}?connection={self.call.connection_id}"

    @property
    def access_url(self) -> str:
        """Return the URL where the person can request the missing access; empty if no access can be requested."""
        return reverse("gateways:access_to", args=[self.asks_at]) if self.asks_at else ""


def as_own(rows: Sequence[Call], owner: User) -> list[OwnCall]:
    """Return the calls as shown to `owner`, who made them."""
    off = [row for row in rows if row.deny_reason in SWITCHED_OFF]
    found = Assignment.objects.live().filter(
        gateway__in={row.gateway_id for row in off}, server__in={row.server_id for row in off}
    )
    assigned: dict[Any, Assignment] = {(one.gateway_id, one.server_id): one for one in found} if off else {}

    def policy(row: Call) -> str:
        one = assigned.get((row.gateway_id, row.server_id))
        return one.tool_policy if one and one.updated_at <= row.created_at else ""

    lacking = {row.gateway_id for row in rows if row.gateway_id and row.deny_reason in ASKABLE}
    may_ask = lacking and owner.uses_gateways
    askable = Gateway.objects.live().filter(pk__in=lacking, takes_requests=True) if may_ask else Gateway.objects.none()
    slugs: dict[Any, str] = dict(askable.order_by().values_list("pk", "slug"))

    def asks_at(row: Call) -> str:
        return slugs.get(row.gateway_id, "") if row.deny_reason in ASKABLE else ""

    return [OwnCall(row, policy(row), asks_at(row)) for row in rows]


@dataclass(frozen=True)
class Wait:
    """The state of a page that waits for a person's first call after a given time.

    The page waits for a call on one gateway, on one connection, or anywhere. The wait ends with a call that was not
    denied, even if the call failed. Calls that are only a hello (see `OwnCall.is_hello`) do not end it.
    """

    user: User
    since: datetime
    until: datetime
    gateway: Gateway | None = None
    connection: Connection | None = None
    apart: bool = False  # True if links open another tab, because the page shows a secret only once.

    @classmethod
    def begin(cls, user: User, since: datetime | None = None, **where: Any) -> Wait:
        """Return a new wait for calls made after `since` (by default now). The wait lasts PATIENCE."""
        now = timezone.now()
        return cls(user, min(max(since or now, now - LOOKED_AT), now), now + PATIENCE, **where)

    @classmethod
    def read(cls, request: AppRequest) -> Wait:
        """Build the wait from the parameters in the query string.

        Other people's connections, and gateways that the person cannot use, are ignored.
        """
        query = request.GET
        connection = own_connection(request.user, query.get("connection", ""))
        gateway = Gateway.objects.reachable_by(request.user).filter(slug=text_of(query, "gateway")).first()
        since, until = moment_of(query, "since"), moment_of(query, "until")
        apart = "apart" in query
        wait = cls.begin(request.user, since, gateway=gateway, connection=connection, apart=apart)
        return wait if until is None else replace(wait, until=min(until, wait.until))

    @cached_property
    def found(self) -> OwnCall | None:
        """Return the call to show; None if there is none.

        In order of preference: first successful call, first failed call, last denied call, last hello (see `is_hello`).
        """
        rows = own_calls(self.user).filter(self._where, created_at__gte=self.since)
        denied = rows.filter(outcome__in=ENDINGS["denied"]).order_by("-created_at").first()
        came = [OwnCall(row) for row in rows.exclude(outcome__in=ENDINGS["denied"]).order_by("created_at")[:PAGE_SIZE]]
        through = [one for one in came if not one.is_hello]
        well = [one for one in through if one.is_ok]
        return next(iter(well or through), None) or (OwnCall(denied) if denied else next(reversed(came), None))

    @property
    def _where(self) -> Q:
        if self.connection:
            return Q(connection_id=self.connection.pk)
        return Q(gateway_id=self.gateway.pk) if self.gateway else Q()

    @property
    def state(self) -> str:
        """Return `waiting`, `hello`, `denied`, `received` or `failed`."""
        if (one := self.found) is None:
            return "waiting"
        if one.is_hello:
            return "hello"
        return "denied" if one.is_denied else "received" if one.is_ok else "failed"

    @property
    def is_over(self) -> bool:
        return self.state in ("received", "failed")

    @property
    def is_asleep(self) -> bool:
        """True if the page has stopped polling until the person confirms that they still wait."""
        return not self.is_over and timezone.now() >= self.until

    @property
    def mark(self) -> str:
        """Return a text that identifies the shown state, to detect changes."""
        return f"{self.found.call.uid if self.found else ''}{'z' if self.is_asleep else ''}"

    @property
    def url(self) -> str:
        """Return the URL to poll, which answers 204 if nothing has changed."""
        return self._url(until=self.until.isoformat(), seen=self.mark)

    @property
    def again_url(self) -> str:
        return self._url()

    def _url(self, **more: str) -> str:
        where = {"gateway": self.gateway.slug} if self.gateway else {}
        where |= {"connection": str(self.connection.pk)} if self.connection else {}
        where |= {"apart": "1"} if self.apart else {}
        return f"{reverse('auditlog:wait')}?{urlencode({'since': self.since.isoformat(), **where, **more})}"


def own_connection(user: User, pk: str) -> Connection | None:
    """Return the person's own live connection with this id, or None."""
    try:
        rows = Connection.objects.own(user).live().filter(pk=UUID(pk))
    except ValueError:
        return None
    return rows.select_related("host", "gateway", "user").first()


@never_cache
@require_GET
@own_resource("one's own calls")
def waiting(request: AppRequest) -> HttpResponse:
    """Show the state of the wait for the person's first call (see `Wait`).

    Answer 204 to a poll of a page that shows this state already.
    """
    wait = Wait.read(request)
    if request.htmx and request.GET.get("seen") == wait.mark and "until" in request.GET:
        return HttpResponse(status=204)
    return show(request, "auditlog/wait.html", {"wait": wait})


@require_GET
@own_resource("one's own calls")
def listing(request: AppRequest) -> HttpResponse:
    """List the person's own calls, newest first, with the reason for each refusal."""
    show_only = text_of(request.GET, "show")
    chosen = show_only if show_only in FILTERS else ""
    calls = listed_calls(request.user)
    if chosen and (floor := calls.order_by("-created_at").values_list("created_at", flat=True)[SEARCH_LIMIT:].first()):
        calls = calls.filter(created_at__gt=floor)  # The cost does not grow with the log.
    found = page(calls.filter(FILTERS[chosen][1]), Cursor.named(request.GET.get("cursor", "")), PAGE_SIZE)
    filters = [(value, label) for value, (label, _) in FILTERS.items()]
    context = {"page": found, "rows": as_own(found.rows, request.user), "filters": filters, "chosen": chosen}
    return show(request, "auditlog/own.html", context)


@require_GET
@own_resource("one's own calls", others=NOBODY)
def one(request: AppRequest, uid: UUID) -> HttpResponse:
    """Show one of the person's own calls, without payloads."""
    try:
        call = Call.objects.find(uid)
    except Call.DoesNotExist as missing:
        raise Http404 from missing
    if call.user_id != request.user.pk:
        raise Http404
    [own] = as_own([call], request.user)
    context = {"one": own, "call": call, "detail": Detail(call), "hold": hold_of(call, request.user)}
    return show(request, "auditlog/own_one.html", context)
