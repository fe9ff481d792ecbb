"""The event that caused a refusal, the number of calls refused since then, and the one action that ends the refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.db.models import Model, Q, QuerySet
from django.http import QueryDict
from django.urls import reverse
from django.utils.text import get_text_list

from accounts.models import Role, User, permissions_of
from auditlog.actions import Action
from auditlog.filters import CallFilter, stamp
from auditlog.models import Call, Event
from auditlog.why import CurrentDecision, feature_of
from capabilities import Capability, CapabilityRequired
from capabilities.catalogue import including
from connections.models import Connection, HostAtGateway
from gateways.models import Assignment, Feature, Gateway
from hosts.models import Host, NotPending
from proxy.access.features import Named
from proxy.dry_run import Obstacle
from rules.models import Rule
from servers.models import HeldDisabled, Identity, Server
from tokens.models import Token
from ui.pages import NAMED_FIRST, first_names

MOST_NAMED = 50
ASKABLE = ("gateway_not_reachable", "tool_not_granted")  # Refusals that a request for access can end.

MODELS: dict[str, type[Model]] = {
    "host": Host,
    "gateway": Gateway,
    "connection": Connection,
    "user": User,
    "token": Token,
    "server": Server,
    "assignment": Assignment,
    "feature": Feature,
    "identity": Identity,
    "rule": Rule,
}


class CannotMend(Exception):
    """The action does not resolve the refusal any more; the message says why."""


class Remedy(NamedTuple):
    """The action that resolves one kind of refusal."""

    subject: str = ""  # The kind of object to act on.
    began: tuple[Action, ...] = ()  # The types of the events that cause the refusal.
    needs: Capability | None = None  # The capability required to resolve the refusal.
    label: str = ""
    verb: str = ""  # The model's method that resolves the refusal.
    # Returns the URL where a person decides, if `verb` is empty, or if the object is a feature that is enabled already.
    page: Callable[[Any], str] | None = None
    owner: str = ""  # A sentence that explains that only the owner of the call can act.
    own_page: bool = False  # True if the owner acts on the page My identities.
    done: str = ""  # The toast after the action, by default "<object> enabled".
    # Returns the events that may have caused the refusal, by default the object's events of the types `began`.
    causes: Callable[[Any], QuerySet[Event]] | None = None
    # Fields of the object: refused calls with the same values are counted, by default the refused calls of the object.
    narrowed_by: tuple[str, ...] = ()


def _events(row: Model, caused: Q) -> QuerySet[Event]:
    """Return the events on `row` that meet the condition `caused`, newest first."""
    return Event.objects.filter(caused, target_type=row._meta.model_name, target_id=str(row.pk))


def _choice_of_gateway(connection: Any) -> QuerySet[Event]:
    """Return the events that may have caused the connection's gateway to refuse the connection's host."""
    here = HostAtGateway.objects.filter(gateway=connection.gateway_id, host=connection.host_id)
    if decided := here.filter(allowed__isnull=False).first():  # Otherwise the gateway was limited to listed hosts.
        return _events(decided, Q(action=Action.HOST_BLOCKED_AT_GATEWAY))
    return _events(connection.gateway, Q(action=Action.GATEWAY_UPDATED, changes__has_key="hosts_allowed"))


def _end_of_token(token: Any) -> QuerySet[Event]:
    """Return the events that may have revoked the token.

    These are revocations of the token and of its connection. Revoking a connection, for example in a review, also
    revokes its tokens.
    """
    own = _events(token, Q(action=Action.TOKEN_REVOKED))
    of_connection = _events(token.connection, Q(action=Action.CONNECTION_REVOKED))
    return (own | of_connection).filter(created_at__gte=token.created_at)


def _at(name: str, field: str = "pk") -> Callable[[Any], str]:
    return lambda row: reverse(name, args=[getattr(row, field)])


def _tools_of(feature: Feature) -> str:
    return reverse("gateways:tools", args=[feature.assignment.gateway.slug])


def _sets_of(feature: Feature) -> str:
    return reverse("connections:tool_sets", args=[feature.assignment.gateway.slug])


_TOOL_OFF = Remedy("feature", (Action.FEATURE_DISABLED,), Capability.GATEWAYS_MANAGE, "Enable", "enable", _tools_of)
_DEFINITION = Remedy(
    "feature", needs=Capability.GATEWAYS_MANAGE, label="Look at the definition", page=_at("gateways:feature")
)
_IDENTITY_OFF = Remedy(
    "identity", (Action.IDENTITY_DISABLED,), Capability.IDENTITIES_MANAGE, "Enable credential", "enable"
)
_ANOTHER = "Only {owner} can create another token."
_OWN_IDENTITY = Remedy("identity", owner="Only {owner} can fix this, on My identities.", own_page=True)

REMEDIES = {
    "host_disabled": Remedy(
        "host", (Action.HOST_DISABLED, Action.HOST_ARCHIVED), Capability.HOSTS_TOGGLE, "Enable agent", "enable"
    ),
    "host_pending": Remedy(
        "host", (Action.HOST_APPEARED,), Capability.HOSTS_TOGGLE, "Allow", "approve", done="App allowed"
    ),
    "gateway_disabled": Remedy(
        "gateway", (Action.GATEWAY_DISABLED,), Capability.GATEWAYS_TOGGLE, "Enable gateway", "enable"
    ),
    "connection_disabled": Remedy(
        "connection", (Action.CONNECTION_DISABLED,), Capability.CONNECTIONS_TOGGLE, "Enable connection", "enable"
    ),
    "user_inactive": Remedy(
        "user",
        (Action.USER_DEACTIVATED,),
        Capability.PEOPLE_MANAGE,
        "Open the person",
        page=_at("accounts:person"),
    ),
    "gateway_not_reachable": Remedy(
        "gateway", (), Capability.GATEWAYS_MANAGE, "Choose who may use it", page=_at("gateways:reach", "slug")
    ),
    "host_not_allowed_here": Remedy(
        "connection",
        (Action.HOST_BLOCKED_AT_GATEWAY,),
        Capability.GATEWAYS_MANAGE,
        "Allow on this gateway",
        "allow_host",
        done="Allowed on this gateway",
        causes=_choice_of_gateway,
        narrowed_by=("gateway", "host"),
    ),
    "rate_limited": Remedy(
        "gateway", (), Capability.GATEWAYS_MANAGE, "Open the gateway's limit", page=_at("gateways:limit", "slug")
    ),
    "server_disabled": Remedy(
        "server", (Action.SERVER_DISABLED,), Capability.SERVERS_TOGGLE, "Enable server", "enable"
    ),
    "assignment_disabled": Remedy(
        "assignment", (Action.ASSIGNMENT_DISABLED,), Capability.GATEWAYS_TOGGLE, "Enable on this gateway", "enable"
    ),
    "tool_disabled": _TOOL_OFF._replace(label="Enable tool"),
    "prompt_disabled": _TOOL_OFF._replace(label="Enable prompt"),
    "resource_disabled": _TOOL_OFF._replace(label="Enable resource"),
    "tool_not_granted": Remedy("feature", needs=Capability.GATEWAYS_MANAGE, label="Open its tool sets", page=_sets_of),
    "definition_held": _DEFINITION._replace(began=(Action.FEATURE_HELD, Action.FEATURE_CHANGED)),
    "definition_quarantined": _DEFINITION._replace(began=(Action.FEATURE_QUARANTINED,)),
    "rule_refused": Remedy(
        "rule",
        (Action.RULE_CREATED, Action.RULE_ENABLED, Action.RULE_MODE_SET, Action.RULE_UPDATED),
        Capability.RULES_MANAGE,
        "Open the rule",
        page=_at("rules:edit"),
    ),
    "identity_disabled": _IDENTITY_OFF,
    "identity_off": _IDENTITY_OFF,
    "identity_withdrawn": Remedy(
        "identity",
        (),
        Capability.IDENTITIES_MANAGE,
        "Choose its gateways",
        page=_at("gateways:identity_gateways"),
    ),
    "identity_unconfirmed": _OWN_IDENTITY._replace(
        label="Confirm", page=_at("servers:confirm_identity"), own_page=False
    ),
    "identity_missing": _OWN_IDENTITY._replace(subject="connection"),
    "identity_sign_in": _OWN_IDENTITY._replace(began=(Action.IDENTITY_SIGN_IN_NEEDED,)),
    "identity_scope": _OWN_IDENTITY,
    "revoked": Remedy("token", (Action.TOKEN_REVOKED,), owner=_ANOTHER, causes=_end_of_token),
    "stale_generation": Remedy(
        "connection", (Action.KEY_REGENERATED,), owner="Only {owner} can connect the app again."
    ),
    "connection_revoked": Remedy("connection", (Action.CONNECTION_REVOKED,), owner="Only {owner} can connect again."),
    "expired": Remedy("token", owner=_ANOTHER),
    "ip": Remedy(
        "token", (Action.TOKEN_UPDATED,), Capability.API_TOKENS_MANAGE, "Edit the token", page=_at("tokens:edit")
    ),
    "out_of_scope": Remedy("token", owner="The servers of a token cannot be changed. " + _ANOTHER),
    "not_connected": Remedy(owner="Only {owner} can connect this app or agent."),
    "no_token": Remedy(owner=_ANOTHER),
}

# Texts for the events that cause a refusal. For other actions, the text is derived from the action's name.
WORDS = {
    Action.FEATURE_HELD: "New at its server",
    Action.FEATURE_CHANGED: "Changed by its server",
    Action.FEATURE_QUARANTINED: "Put in quarantine",
    Action.GATEWAY_UPDATED: "Limited to listed apps and agents",
    Action.IDENTITY_SIGN_IN_NEEDED: "Ended",
    Action.RULE_MODE_SET: "Turned on",
    Action.TOKEN_UPDATED: "Changed",
}


@dataclass(frozen=True)
class Cause:
    """The cause of one obstacle (a reason that stops a call), limited to data that the reader may see."""

    reason: str
    event: Event | None = None  # The event that caused the obstacle.
    words: str = ""
    by: str = ""
    count: str = ""  # The number of calls refused since the event.
    calls: str = ""  # A link to these calls.
    act: str = ""  # The label of the action that resolves the obstacle.
    subject: str = ""  # The id of the object for the action, a POST. If empty, the action is the page `link`.
    link: str = ""
    who: str = ""  # Names the people who can act, if the reader cannot.

    @property
    def since(self) -> datetime | None:
        return self.event.created_at if self.event else None


@dataclass(frozen=True)
class Subjects:
    """The objects of one call: ids by kind of object, the called feature, and the person who makes the call.

    An obstacle to the call is about one of these objects.
    """

    ids: dict[str, Any]
    feature: Named | None
    owner: User | None

    def row(self, subject: str) -> Any:
        """Return the object of the kind `subject`, or None if there is none, for example because it was deleted."""
        if subject == "feature":
            return self._feature()
        if subject == "assignment" and not self.ids.get("assignment"):
            return Assignment.objects.live().filter(gateway=self.ids["gateway"], server=self.ids["server"]).first()
        pk = self.ids.get(subject)
        return MODELS[subject]._default_manager.filter(pk=pk).first() if pk else None

    def _feature(self) -> Feature | None:
        assignment = self.row("assignment")
        if assignment is None or self.feature is None:
            return None
        named = Q(exposed_name=self.feature.name)
        name = self.feature.name.removeprefix(assignment.prefix)
        rows = Feature.objects.filter(assignment=assignment, kind=self.feature.kind)
        return rows.filter(named | Q(name=name)).select_related("assignment__gateway").first()


def of_call(call: Call) -> Subjects:
    names = ("host", "gateway", "connection", "user", "token", "server", "identity", "rule")
    ids = {name: getattr(call, f"{name}_id") for name in names}
    return Subjects(ids, feature_of(call), User.objects.filter(pk=call.user_id).first() if call.user_id else None)


def of_answer(answer: CurrentDecision, obstacle: Obstacle) -> Subjects:
    question, at = answer.question, obstacle.assigned
    ids = {
        "host": question.host.pk,
        "gateway": question.gateway.pk,
        "user": question.user.pk,
        "connection": answer.connection.pk if answer.connection else getattr(answer.token, "connection_id", None),
        "token": answer.token.pk if answer.token else None,
        "server": at.server_id if at else None,
        "assignment": at.id if at else None,
        "identity": at.identity_id if at else None,
        "rule": obstacle.rule.id if obstacle.rule else None,
    }
    return Subjects(ids, question.feature, question.user)


def cause(reason: str, subjects: Subjects, reader: User, *, before: Any = None, still: bool = True) -> Cause:
    """Return the cause of an obstacle, limited to data that `reader` may see, and the action that `reader` can take.

    Events after `before` cannot be the cause. `still=False` means that the obstacle is gone, so no action is offered.
    """
    remedy = REMEDIES.get(reason)
    row = subjects.row(remedy.subject) if remedy and remedy.subject else None
    if remedy is None or row is None:
        return Cause(reason, who=_owner_only(remedy, subjects) if still and remedy else "")
    told = _history(reason, remedy, row, subjects, reader, before)
    act = _act(reason, remedy, row, subjects, reader) if still else {}
    return Cause(reason, **told, **act)  # type: ignore[arg-type]  # `act` never has the key `event`.


def mend(reason: str, pk: Any, *, by: User) -> Model:
    """Resolve an obstacle by calling the remedy's method on the object `pk`, and return the object.

    Raises KeyError if the reason has no remedy with a method. Raises Model.DoesNotExist if the object is unknown,
    archived, removed or revoked. Raises Http404 if somebody removes the object while this function runs. Raises
    CapabilityRequired if `by` may not act, and CannotMend if the action does not resolve the obstacle any more.
    """
    remedy = REMEDIES[reason]
    if not remedy.verb:
        raise KeyError(reason)
    row: Model = _rows(remedy.subject).get(pk=pk)
    if (missing := _missing(remedy, row, by)) is not None:
        raise CapabilityRequired(missing)
    try:
        getattr(row, remedy.verb)(by=by)
    except (HeldDisabled, NotPending) as refused:
        raise CannotMend(str(refused)) from None
    return row


def done(row: Model, reason: str) -> str:
    """Return the text of the toast after `mend`."""
    return REMEDIES[reason].done or f"{str(row._meta.verbose_name).capitalize()} enabled"


def is_a_switch(reason: str) -> bool:
    """True if one action resolves this refusal for everyone affected."""
    return reason in REMEDIES and REMEDIES[reason].verb != ""


def _rows(subject: str) -> Any:
    """Return the objects that an action may apply to: those that are not archived, removed or revoked."""
    rows: Any = MODELS[subject]._default_manager
    return rows.filter(assignment__removed_at=None) if subject == "feature" else rows.live()


def _missing(remedy: Remedy, row: Any, reader: User) -> Capability | None:
    """Return the capability that `reader` lacks for the action, or None if `reader` may act."""
    if isinstance(row, Identity) and remedy.verb:
        return None if row.may_be_enabled_by(reader) else row.needed
    return None if remedy.needs is None or reader.has_perm(remedy.needs) else remedy.needs


def _act(reason: str, remedy: Remedy, row: Any, subjects: Subjects, reader: User) -> dict[str, str]:
    if isinstance(row, Identity) and reason == "identity_unconfirmed":
        may, who = row.may_be_confirmed_by(reader), "" if row.is_shared else _owner_only(remedy, subjects)
        return (
            _led(remedy, row) if may else {"who": who or who_can(Capability.IDENTITIES_MANAGE, reader, "change this")}
        )
    if remedy.needs is None:
        return _own_act(remedy, subjects, reader)
    if (missing := _missing(remedy, row, reader)) is not None:
        asks = reason in ASKABLE and subjects.owner == reader
        return (_request(row, reader) if asks else {}) or {"who": who_can(missing, reader, "change this")}
    if remedy.verb and not _rows(remedy.subject).filter(pk=row.pk).exists():
        return {"who": "The object was archived, removed or revoked."}
    if remedy.verb and not (isinstance(row, Feature) and row.enabled):
        return {"act": remedy.label, "subject": str(row.pk)}
    return _led(remedy._replace(label="Open its tools") if remedy.verb else remedy, row)


def _request(row: Any, reader: User) -> dict[str, str]:
    """Return the fields `act` and `link` of a Cause, for the link “Request access”.

    Returns an empty dict if the gateway of `row` does not take requests, or if the role of `reader` forbids the use of
    gateways.
    """
    gateway = row if isinstance(row, Gateway) else row.assignment.gateway if isinstance(row, Feature) else None
    if gateway is None or not gateway.takes_requests_of(reader):
        return {}
    return {"act": "Request access", "link": reverse("gateways:access_to", args=[gateway.slug])}


def _led(remedy: Remedy, row: Any) -> dict[str, str]:
    return {"act": remedy.label, "link": remedy.page(row)} if remedy.page else {}


def _own_act(remedy: Remedy, subjects: Subjects, reader: User) -> dict[str, str]:
    if subjects.owner == reader and remedy.own_page:
        return {"act": "My identities", "link": reverse("connections:mine")}
    return {"who": _owner_only(remedy, subjects)}


def _owner_only(remedy: Remedy, subjects: Subjects) -> str:
    return remedy.owner.format(owner=subjects.owner.email if subjects.owner else "its owner")


def who_can(needs: Capability, reader: User, act: str = "decide") -> str:
    """Return a sentence that says who can `act`, which is a phrase such as "change this".

    The sentence names the people who have the capability `needs`. If `reader` may not see people, it names the roles.
    """
    granting = permissions_of(including([needs]))
    if any(map(reader.has_perm, (Capability.PEOPLE_READ, Capability.AUDIT_READ))):
        holders = User.objects.filter(is_active=True).filter(Q(role__permissions__in=granting) | Q(is_superuser=True))
        names = list(holders.order_by("email").values_list("email", flat=True).distinct()[:MOST_NAMED])
        return f"{first_names(names)} can {act}." if names else "No active person can do this at present."
    roles = list(
        Role.objects.filter(permissions__in=granting).order_by("name").values_list("name", flat=True).distinct()
    )
    named = roles if len(roles) <= NAMED_FIRST else [*roles[:NAMED_FIRST], "another"]
    return f"People with the role {get_text_list(named, 'or')} can {act}."


def _history(reason: str, remedy: Remedy, row: Any, subjects: Subjects, reader: User, before: Any) -> dict[str, Any]:
    """Return fields of a Cause: the event that caused the refusals, and the number of calls refused since then.

    Empty if no event is known. The event's actor is named only if `reader` may read events.
    """
    events = remedy.causes(row) if remedy.causes else _events(row, Q(action__in=remedy.began))
    event = (events.filter(created_at__lte=before) if before else events).first() if remedy.began else None
    if event is None:
        return {}
    narrowed = urlencode([*_narrowed(reason, remedy, row, subjects), ("from", stamp(event.created_at))])
    return {
        "event": event,
        "words": _words(Action(event.action)),
        "by": event.actor_email if reader.has_perm(Capability.AUDIT_READ) else "",
        "count": str(CallFilter(QueryDict(narrowed)).search().count()),
        "calls": f"{reverse('auditlog:calls')}?{narrowed}",
    }


def _words(action: Action) -> str:
    verb = action.partition(".")[2]
    return WORDS.get(action) or ("Disabled" if verb == "disabled" else verb.capitalize())


def _narrowed(reason: str, remedy: Remedy, row: Any, subjects: Subjects) -> Iterator[tuple[str, str]]:
    yield "q", f"reason is {reason}{f' and rule is {row.pk}' if remedy.subject == 'rule' else ''}"
    if remedy.narrowed_by:
        yield from ((name, str(getattr(row, f"{name}_id"))) for name in remedy.narrowed_by)
        return
    match subject := remedy.subject:
        case "host" | "gateway" | "server" | "user" | "connection":
            yield subject, str(row.pk)
        case "token":
            yield "connection", str(row.connection_id)
        case "identity":
            yield "server", str(row.server_id)
        case "assignment" | "feature":
            assignment = row if isinstance(row, Assignment) else row.assignment
            yield "gateway", str(assignment.gateway_id)
            yield "server", str(assignment.server_id)
            if isinstance(row, Feature):
                yield "tool", row.exposed_name
