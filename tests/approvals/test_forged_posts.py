"""Forged requests about rules and held calls: none changes or reveals anything.

Each kind of person in `PEOPLE` sends each request in `DOORS`. The field `may` of a request names the kinds of people
who may send it. A request from anybody else is forged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Team, User
from approvals.models import Allowance, AllowFor, Hold
from capabilities import Capability
from capabilities.catalogue import AUDITOR
from connections.models import Connection
from rules.models import Rule
from tests import make
from tests.approvals.conftest import TOOL, Desk
from tests.cases import first
from tests.rest import Rest
from tests.undone import undone

pytestmark = pytest.mark.django_db

SECRET = "secret-plan-740"
ALL = frozenset(Capability)
PEOPLE: dict[str, frozenset[Capability] | None] = {
    "requester": frozenset({Capability.APPROVALS_DECIDE}),  # The rule asks for somebody else.
    "nobody": None,
    "member": frozenset({Capability.LOGS_PAYLOADS}),
    "approver of another rule": frozenset(),  # By a team, without a capability.
    "viewer of rules": frozenset({Capability.RULES_READ}),
    "manager of rules": frozenset({Capability.RULES_MANAGE}),
    "manager of rules with log": frozenset({Capability.RULES_MANAGE, Capability.LOGS_READ}),
    "approver without arguments": frozenset({Capability.APPROVALS_DECIDE}),
    "auditor": AUDITOR.capabilities,
    "staff": frozenset(),
    "narrow key of the admin": ALL,  # With RULES_READ only.
    "form on another site": ALL,  # The admin's browser sends it, without a CSRF token.
    "admin": ALL,
}
KEYS = {"narrow key of the admin"}  # No page takes them.
STAFF = {"staff", "admin"}
DECIDERS = {"approver without arguments", "admin"}
SEE_HOLDS = {"requester", *DECIDERS, "form on another site", "auditor", "manager of rules with log"}
MANAGERS = {"manager of rules", "manager of rules with log", "admin"}
SEE_RULES = {*MANAGERS, "viewer of rules", "auditor", "narrow key of the admin", "form on another site"}
SEE_LOG = {"auditor", "admin"}  # And the agents that they ask about.
READ_ARGUMENTS = {"admin", "form on another site"}  # The other site cannot read the answer.
LABEL: dict[str, Any] = {"effect": "label", "text": "seen"}


@dataclass
class Scene:
    """A waiting, an approved and an expired hold of the requester's agent, an allowance, and two rules."""

    hold: Hold
    approved: Hold
    expired: Hold
    allowance: Allowance
    rule: Rule
    later: Rule
    question: dict[str, str]

    def state(self) -> list[Any]:
        """Return everything that a forged request could change."""
        return [
            *Hold.objects.order_by("pk").values_list("pk", "state", "decided_by", "ends_at", "sentence"),
            *Allowance.objects.order_by("pk").values_list("pk", "ends_at", "ended_at", "names", "digest"),
            *Rule.objects.order_by("pk").values_list("pk", "name", "when", "effect", "mode", "enabled", "position"),
            *Connection.objects.order_by("pk").values_list("pk", "hold_wait"),
        ]


class Visitor(NamedTuple):
    browser: Client
    rest: Rest


class Door(NamedTuple):
    """A request, and the kinds of people who may send it.

    With `tells`, the request took effect if its answer contains this text. Without `tells`, it took effect if it
    changed something.
    """

    name: str
    may: set[str]
    knock: Callable[[Visitor, Scene], Any]
    tells: str = ""


def page(path: str, may: set[str], tells: str) -> Door:
    return Door(f"GET {path}", may - KEYS, lambda who, scene: who.browser.get(path.format(**vars(scene))), tells)


def form(path: str, may: set[str], **fields: Any) -> Door:
    shown = {name: value for name, value in fields.items() if name in ("act", "allow")}
    return Door(
        f"POST {path} {shown or ''}", may, lambda who, scene: who.browser.post(path.format(**vars(scene)), fields)
    )


def rest(method: str, path: str, may: set[str], body: Any = None, tells: str = "") -> Door:
    def knock(who: Visitor, scene: Scene) -> Any:
        return who.rest.send(method, path.format(**vars(scene)), body)

    return Door(f"{method.upper()} /api{path} {body or ''}", may, knock, tells)


def admin(model: str, action: str, may: set[str], row: str) -> Door:
    def knock(who: Visitor, scene: Scene) -> Any:
        chosen = {"action": action, "_selected_action": [str(getattr(scene, row).pk)], "sure": "yes"}
        return who.browser.post(reverse(f"admin:{model}_changelist"), chosen)

    return Door(f"admin {model} {action}", may, knock)


def admin_form(model: str, row: str, **fields: Any) -> Door:
    def knock(who: Visitor, scene: Scene) -> Any:
        return who.browser.post(reverse(f"admin:{model}_change", args=[getattr(scene, row).pk]), fields)

    return Door(f"admin {model} change", set(), knock)


NEW: dict[str, Any] = {"name": "New", "mode": "on", "condition": "always", **LABEL}
ON_ARGUMENTS = {**NEW, "condition": "expression", "when": f"args.note == '{SECRET}'"}
FILE = "version: 1\nrules:\n  - name: New\n    effect: label\n    text: seen\n"
DOORS = (
    # Held calls: pages.
    page("/approvals/", SEE_HOLDS, "docs__search"),
    page("/approvals/?format=csv", SEE_HOLDS, "docs__search"),
    page("/approvals/decided/?format=jsonl", SEE_HOLDS, "docs__search"),
    page("/approvals/allowed/", SEE_HOLDS, "docs__search"),
    page("/approvals/{hold.pk}/", SEE_HOLDS, "docs__search"),
    page("/approvals/{hold.pk}/?act=approve", set(), ""),  # The link of a message.
    page("/approvals/{hold.pk}/decide/?act=approve", set(), ""),
    form("/approvals/{hold.pk}/decide/", DECIDERS, act="approve"),
    form("/approvals/{hold.pk}/decide/", DECIDERS, act="approve", allow="hour", names=["note"]),
    form("/approvals/{hold.pk}/decide/", DECIDERS, act="deny", sentence="No."),
    form("/approvals/{approved.pk}/decide/", set(), act="approve", allow="today"),
    form("/approvals/{approved.pk}/decide/", set(), act="deny"),
    form("/approvals/{expired.pk}/decide/", set(), act="approve", allow="today"),
    form("/approvals/{hold.pk}/withdraw/", {"requester"}),
    form("/approvals/{hold.pk}/wait/", {"requester", "admin"}, seconds="9"),
    form("/approvals/allowed/{allowance.pk}/end/", {"requester", *DECIDERS}),
    # Held calls: REST.
    rest("get", "/holds", SEE_HOLDS, tells="docs__search"),
    rest("get", "/holds/{hold.pk}", SEE_HOLDS, tells="docs__search"),
    rest("get", "/allowances", SEE_HOLDS, tells="docs__search"),
    rest("get", "/allowances/{allowance.pk}", SEE_HOLDS, tells="docs__search"),
    rest("post", "/holds/{hold.pk}/approve", DECIDERS, {}),
    rest("post", "/holds/{hold.pk}/approve", DECIDERS, {"allow": "today", "names": ["note"]}),
    rest("post", "/holds/{hold.pk}/deny", DECIDERS, {}),
    rest("post", "/holds/{approved.pk}/approve", set(), {"allow": "today"}),
    rest("post", "/holds/{expired.pk}/approve", set(), {}),
    rest("post", "/holds/{hold.pk}/withdraw", {"requester"}),
    rest("patch", "/holds/{hold.pk}", set(), {"state": "approved", "arguments": "{{}}"}),
    rest("post", "/holds", set(), {"state": "approved"}),
    rest("post", "/allowances/{allowance.pk}/end", {"requester", *DECIDERS}),
    rest("patch", "/allowances/{allowance.pk}", set(), {"ends_at": "2999-01-01T00:00:00Z", "names": []}),
    rest("post", "/allowances", set(), {"ends_at": "2999-01-01T00:00:00Z"}),
    # Rules: pages.
    page("/rules/", SEE_RULES, "Watched"),
    page("/rules/?format=csv", SEE_RULES, "Watched"),
    page("/rules/{rule.pk}/", SEE_RULES, "Watched"),
    page("/rules/{rule.pk}/yaml/", SEE_RULES, "Watched"),
    form("/rules/add/", MANAGERS, **NEW),
    form("/rules/{rule.pk}/", MANAGERS, **NEW),
    *(form(f"/rules/{{rule.pk}}/{act}/", MANAGERS) for act in ("turn-on", "disable", "remove")),
    form("/rules/{later.pk}/watch/", MANAGERS),
    form("/rules/{later.pk}/enable/", MANAGERS),
    form("/rules/{later.pk}/move/", MANAGERS, to="up"),
    Door(
        "POST /rules/replay/ on arguments",
        {"admin"},
        lambda who, scene: who.browser.post("/rules/replay/", ON_ARGUMENTS),
        "would have been affected",
    ),
    # Rules: REST and files.
    rest("get", "/rules", SEE_RULES, tells="Watched"),
    rest("get", "/rules/{rule.pk}", SEE_RULES, tells="Watched"),
    rest("post", "/rules", MANAGERS, {"name": "New", **LABEL}),
    rest("patch", "/rules/{rule.pk}", MANAGERS, {"mode": "on"}),
    rest("delete", "/rules/{rule.pk}", MANAGERS),
    rest("post", "/rules/{rule.pk}/disable", MANAGERS),
    rest("post", "/rules/{later.pk}/enable", MANAGERS),
    rest("post", "/rules/{later.pk}/move", MANAGERS, {"position": 1}),
    rest("get", "/config/export", SEE_RULES, tells="Watched"),
    rest("post", "/config/apply", MANAGERS, {"files": [{"name": "a.yaml", "content": FILE}]}),
    # A question about somebody else's call, with arguments of the asker.
    Door(
        "POST /logs/what-if/",
        SEE_LOG,
        lambda who, scene: who.browser.post("/logs/what-if/", scene.question),
        "It would stop at",
    ),
    Door(
        "POST /api/logs/what-if",
        SEE_LOG,
        lambda who, scene: who.rest.post("/logs/what-if", scene.question | {"arguments": {}}),
        '"works"',
    ),
    # The Django admin.
    admin("approvals_allowance", "end", {"admin"}, "allowance"),
    admin("rules_rule", "turn_on", {"admin"}, "rule"),
    admin("rules_rule", "disable", {"admin"}, "rule"),
    admin("rules_rule", "remove", {"admin"}, "rule"),
    admin("approvals_hold", "approve", set(), "hold"),
    admin("approvals_hold", "delete_selected", set(), "hold"),
    admin_form("approvals_hold", "hold", state="approved"),
    admin_form("approvals_allowance", "allowance", ends_at_0="2999-01-01", ends_at_1="00:00"),
    admin_form("rules_rule", "rule", **NEW),
)


def build(kind: str) -> tuple[Scene, User | None]:
    """Create the objects of a test and a person of this `kind`, and return both; the person is None for "nobody"."""
    docs, mia = make.server(slug="docs"), make.user(Capability.APPROVALS_DECIDE, email="mia@example.com")
    link = make.connection(make.agent(by=mia, name="CI bot"), make.gateway(docs, slug="work"), mia)
    arguments = {"note": SECRET, "amount": 740}
    hold, approved, expired = (make.hold(link, docs, arguments={**arguments, "n": n}) for n in range(3))
    Hold.objects.update(somebody_else=True)
    approved.refresh_from_db()
    approved.approve(by=make.user(Capability.APPROVALS_DECIDE), allow=AllowFor.HOUR, names=["note"])
    Hold.objects.filter(pk=expired.pk).update(ends_at=timezone.now())
    payload = {"method": "tools/call", "params": {"name": "docs__search", "arguments": arguments}}
    objects: dict[str, Any] = {
        "host_id": link.host_id,
        "user_id": mia.pk,
        "gateway_id": link.gateway_id,
        "server_id": docs.pk,
    }
    make.call(feature_type="tool", feature_name="docs__search", request_payload=payload, **objects)
    rule, later = (Rule.objects.add(name=name, by=None, **LABEL) for name in ("Watched", "Later"))
    later.set_mode("on", by=None)
    later.disable(by=None)
    question = {"host": "CI bot", "user": mia.email, "gateway": "work"}
    scene = Scene(hold, approved, expired, Allowance.objects.get(), rule, later, question)
    return scene, mia if kind == "requester" else person(kind, link)


def person(kind: str, link: Connection) -> User | None:
    if (capabilities := PEOPLE[kind]) is None:
        return None
    found = make.user(*capabilities, is_staff=kind in STAFF)
    if kind.startswith("approver of"):
        team = Team.objects.create(name="Others")
        team.users.add(found)
        other = make.server(slug="mail")
        theirs = make.connection(make.agent(by=found), make.gateway(other), make.user())
        make.hold(theirs, other, tool="mail__send", approvers="team", team=team)
    return found


def visitor(kind: str, user: User | None) -> Visitor:
    if user is not None and kind.startswith("narrow key"):
        return Visitor(Client(), Rest.bearing(make.api_key(user, Capability.RULES_READ).secret))
    rest = Rest.of(user)
    if kind.startswith("form on"):
        rest.client.handler.enforce_csrf_checks = True
    return Visitor(rest.client, rest)


@pytest.mark.parametrize("kind", first(1, PEOPLE))
def test_no_forged_request_passes(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    scene, user = build(kind)
    who, before = visitor(kind, user), scene.state()
    passed, leaked, forged = set(), set(), 0
    for door in DOORS:
        with undone():
            answer = door.knock(who, scene)
            body = b"".join(answer) if answer.streaming else answer.content
            if (door.tells.encode() in body and answer.status_code == 200) if door.tells else scene.state() != before:
                passed.add(door.name)
            if SECRET.encode() in body and kind not in READ_ARGUMENTS and b"args.note" not in body:
                leaked.add(door.name)
        forged += kind not in door.may

    with capsys.disabled():
        print(f"{kind}: {forged} forged requests, {len(passed) - len(DOORS) + forged} passed")  # noqa: T201
    assert passed == {door.name for door in DOORS if kind in door.may}
    assert not leaked


@pytest.mark.full
def test_no_message_of_a_client_approves(desk: Desk) -> None:
    """No message of an agent approves a call, and an approval counts only for the connection of the held call."""
    hold, mallory = desk.held({"n": 1}), make.user()
    other = make.connection(make.agent(by=mallory), desk.connection.gateway, mallory)
    stranger = desk.proxies[0].agent(other)
    hold.refresh_from_db()
    accepted: Any = {"action": "accept", "content": {"approved": True}}
    approved = {"hold": str(hold.pk), "state": "approved", "approved": True}
    call = {"name": TOOL, "arguments": {"n": 1}}
    params: list[Any] = [
        {**call, "_meta": approved},
        {**call, **approved},
        {**call, "requestState": str(hold.pk), "inputResponses": {"gateway-approval": accepted}},
        {**call, "inputResponses": {"gateway-approval": accepted}, "_meta": {"requestState": str(hold.pk)}},
        {**call, "arguments": {"n": 1, "_meta": approved}},
        {**call, "arguments": {"n": 2}},
        {"name": "approve", "arguments": approved},
        {"name": f"{TOOL}/approve", "arguments": approved},
    ]
    bodies = [{"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": each} for each in params]
    bodies += [{"jsonrpc": "2.0", "id": number, "result": accepted} for number in (1, 7, str(hold.pk))]
    bodies += [
        {"jsonrpc": "2.0", "id": 7, "method": method, "params": approved}
        for method in ("approvals/approve", "holds/approve", "elicitation/create", "notifications/elicitation/complete")
    ]

    for body in bodies:
        for agent in (desk.agent, stranger):
            agent.post(body)
            agent.post(body, MCP_Protocol_Version="2026-07-28")

    hold.refresh_from_db()
    assert (hold.state, desk.runs) == ("waiting", 0)
    hold.approve(by=desk.ben)
    assert stranger.call(TOOL, {"n": 1}).json()["result"]["isError"]
    assert desk.runs == 0
    assert "isError" not in desk.call({"n": 1})
    assert desk.runs == 1
