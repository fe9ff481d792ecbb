"""The admin events: the page, one event, and the file."""

import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from uuid import UUID, uuid4

import pytest
import time_machine
from django.test import Client

from accounts.models import KeyEnd, Role, Team, User, WorkspaceSettings
from approvals.models import AllowFor
from auditlog.actions import Action
from auditlog.events import ChangedField, EventRow, TargetUrls, changes_in_words
from auditlog.models import Event, EventContext, Via, use_context
from capabilities import Capability
from gateways.models import GatewayGrant, ToolGrant, ToolSet
from servers.models import AuthType, Server
from tests import make
from tests.conftest import SignIn, wire_size
from tests.exported import rows_of
from tests.rest import Rest

pytestmark = pytest.mark.django_db

PATH = "/settings/admin-events/"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def auditor() -> User:
    """A person who may only read admin events."""
    return make.user(Capability.AUDIT_READ, email="auditor@example.com")


@pytest.fixture
def chief() -> User:
    return make.user(*Capability, email="chief@example.com")


def event(
    action: Action = Action.HOST_DISABLED,
    *,
    by: User | None = None,
    via: Via = Via.WEB,
    correlation_id: UUID | None = None,
    label: str = "thing",
    **changes: Any,
) -> Event:
    """Create an event about a role with the name `label`."""
    with use_context(EventContext(via, "203.0.113.9", correlation_id or uuid4())):
        return Event.objects.record(action, Role(name=label), by=by, changes=changes)


def text(response: Any) -> str:
    return str(response.content.decode())


def labels(response: Any) -> set[str]:
    return {row.event.target_label for row in response.context["rows"]}


def test_the_page_says_who_did_what_to_what_and_how_it_changed(chief: User, auditor: User, sign_in: SignIn) -> None:
    event(by=chief, label="CI bot", enabled=[True, False], name=["CI", "CI bot"])

    row = text(sign_in(auditor).get(PATH)).split("<tbody")[1].split("</tr>")[0]

    for words in (
        "chief@example.com",
        "Web",
        '<span class="who">chief@example.com</span> disabled the agent <b>CI bot</b>.',
        "Role",
        "name: CI → <b>CI bot</b>;",
        "enabled: yes → <b>no</b>",
    ):
        assert words in row


def test_a_kind_of_target_is_told_in_words(auditor: User) -> None:
    kinds = {"accessrequest": "Access request", "directoryaddress": "Directory address", "role": "Role"}

    assert {kind: EventRow(Event(target_type=kind), TargetUrls({}, auditor)).kind for kind in kinds} == kinds


def test_a_change_is_told_in_words() -> None:
    assert changes_in_words(
        {
            "enabled": [True, False],
            "display_name": ["", "Bo"],
            "users": [["a", "b"], ["b", "c"]],
            "log_retention_days": [90, 0],
            "email": "x@example.com",
            "parts": [{"a": 1}, {"a": 2}],
            "expires_at": [None, "2026-11-24T09:05:00.123+00:00"],
            "alias": [None, ""],
        }
    ) == [
        ChangedField("enabled", "yes", "no"),
        ChangedField("display name", "none", "Bo"),
        ChangedField("users", "a", "c"),
        ChangedField("log retention days", "90", "0"),
        ChangedField("email", None, "x@example.com"),
        ChangedField("parts", '{"a": 1}', '{"a": 2}'),
        ChangedField("expires at", "none", "Nov 24, 2026, 09:05 UTC"),
    ]


@pytest.mark.full
def test_a_value_of_a_field_named_as_a_secret_is_stored_nowhere(auditor: User, sign_in: SignIn) -> None:
    told = {"secret": [None, "new-value"], "Password": "hunter2", "name": ["a", "b"]}
    shown = Event.objects.record(Action.USER_UPDATED, auditor, by=auditor, changes=told)

    page = text(sign_in(auditor).get(f"{PATH}{shown.uid}/"))
    [listed] = [one for one in Rest.of(auditor).get("/admin-events").json()["results"] if one["id"] == str(shown.uid)]

    assert listed["changes"] == {"secret": [None, "***"], "Password": "***", "name": ["a", "b"]}
    assert "none → <b>***</b>" in page
    assert "hunter2" not in page
    assert "new-value" not in page


@pytest.mark.full
def test_text_chosen_by_strangers_stays_text(auditor: User, sign_in: SignIn) -> None:
    shown = event(label="<script>alert(1)</script>", name=["<b>old</b>", "<img src=x>"])
    client = sign_in(auditor)

    for page in (text(client.get(PATH)), text(client.get(f"{PATH}{shown.uid}/"))):
        assert "<script>alert" not in page
        assert "<img src" not in page
        assert "&lt;img src=x&gt;" in page


@pytest.mark.full
def test_the_query_string_narrows_the_list_and_htmx_gets_only_what_changes(
    chief: User, auditor: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    with time_machine.travel(datetime.now(UTC) - timedelta(days=31)):
        event(label="ancient")
    request, client = uuid4(), sign_in(auditor)
    one = event(by=chief, label="one")
    event(Action.HOST_ENABLED, label="two", correlation_id=request)
    event(Action.ROLE_CREATED, label="three", via=Via.API, correlation_id=request)
    recent = {"one", "two", "three"}
    queries: dict[str, set[str]] = {
        "": recent,
        "?actor=chief": {"one"},
        f"?actor={chief.pk}": {"one"},
        "?action=host.enabled&action=role.created": {"two", "three"},
        "?target=TW": {"two"},
        "?target=role": recent,
        f"?target={one.target_id}": {"one"},
        f"?target={one.target_id.upper()}": {"one"},
        "?via=api": {"three"},
        "?via=api&actor=chief": set(),
        f"?correlation={request}": {"two", "three"},
        "?correlation=nonsense": set(),
        "?range=1h": recent,
        "?range=all": {*recent, "ancient"},
        "?range=nonsense&action=nonsense&via=nonsense&cursor=nonsense": recent,
        "?actor=%00": recent,
    }
    for query, found in queries.items():
        with subtests.test(query):
            assert labels(client.get(PATH + query)) == found

    part = client.get(f"{PATH}?action=host.disabled&actor=", headers=HTMX)
    assert "<html" not in text(part)
    assert 'id="event-count" hx-swap-oob="true"' in text(part)
    assert "action=host.disabled&amp;format=csv" in text(part)
    assert part["HX-Push-Url"] == f"{PATH}?action=host.disabled"


def test_the_history_of_a_person_has_the_teams_they_joined_and_left(
    chief: User, auditor: User, sign_in: SignIn
) -> None:
    ann, ben = make.user(email="ann@example.com"), make.user(email="ben@example.com")
    team = Team.objects.add(name="Readers", users=[ann], by=chief)
    team.edit(name="Readers", users=[ann, ben], by=chief)
    team.edit(name="Writers", users=[ann, ben], by=chief)
    team.edit(name="Writers", users=[ben], by=chief)
    client, rest = sign_in(auditor), Rest.of(auditor)

    left, joined = [["ann@example.com", "ben@example.com"], ["ben@example.com"]], [[], ["ann@example.com"]]
    for query in (f"?target={ann.pk}", "?target=Ann@example.com"):
        rows = [row.event for row in client.get(PATH + query).context["rows"]]
        assert [event.changes["users"] for event in rows if event.target_type == "team"] == [left, joined]
    for asked in ({"target_id": ann.pk}, {"q": "ann@example.com"}):
        found = rest.get("/admin-events", **asked).json()["results"]
        assert [one["changes"]["users"] for one in found if one["target_type"] == "team"] == [left, joined]


def test_the_page_of_a_person_opens_their_whole_history(chief: User, sign_in: SignIn) -> None:
    client = sign_in(chief)
    with time_machine.travel(datetime.now(UTC) - timedelta(days=31)):
        event(by=chief, label="ancient")

    page = text(client.get(f"/people/{chief.pk}/"))
    [url] = re.findall(r'href="([^"]*)">actions of this person', page)
    assert "ancient" in labels(client.get(unescape(url)))


def things_of(person: User, server: Server, *, by: User) -> None:
    """Create grants, a token, an API key and more for `person`, then change and end them; `by` does all of it."""
    gateway, identity = make.gateway(server, by=by), make.identity(server, person)
    tools = ToolSet.objects.add(gateway=gateway, name="All", patterns=["*"], by=by)
    grants = (
        ToolGrant.objects.give(tools, user=person, by=by),
        GatewayGrant.objects.give(gateway, person, by=by),
    )
    link = make.connection(make.agent(by=by), gateway, person)
    make.hold(link, server).approve(by=by, allow=AllowFor.HOUR)
    make.hold(link, server, arguments={}).deny(by=by)
    token = make.token(link).token
    token.edit(by=by, calls_per_minute=5)
    token.ask_for_new(by=by)
    token.revoke(by=by)
    for thing in (identity, link):
        thing.disable(by=by)
        thing.revoke(by=by)
    for grant in grants:
        grant.end(by=by)
    make.api_key(person, Capability.OAUTH_CONNECT).key.end(by=by, reason=KeyEnd.MANUAL)


def test_the_history_of_a_person_has_what_others_did_with_what_belongs_to_them(
    chief: User, auditor: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    ann, ben = (make.user(Capability.OAUTH_CONNECT, email=f"{name}@example.com") for name in ("ann", "ben"))
    server = make.server(auth_type=AuthType.BEARER)
    for person in (ann, ben):
        things_of(person, server, by=chief)
    make.identity(server).disable(by=chief)  # A shared credential belongs to nobody.
    client, rest = sign_in(auditor), Rest.of(auditor)

    actions = {
        *("allowance.given", "api_key.created", "api_key.revoked", "connection.opened", "connection.disabled"),
        *("connection.revoked", "gateway_grant.given", "gateway_grant.ended", "hold.approved", "hold.denied"),
        *("identity.created", "identity.disabled", "identity.revoked", "token.asked_for_new", "token.issued"),
        *("token.revoked", "token.updated", "tool_grant.given", "tool_grant.ended"),
    }
    for query in (f"?target={ann.pk}", "?target=Ann@example.com"):
        with subtests.test(query):
            rows = [row.event for row in client.get(PATH + query).context["rows"]]
            assert {one.action for one in rows} >= actions
            assert {one.changes["owner"] for one in rows if one.action in actions} == {ann.email}
            [edited] = [one for one in rows if one.action == "token.updated"]
            assert [one.field for one in changes_in_words(edited.changes)] == ["calls per minute", "owner"]
    for asked in ({"target_id": ann.pk}, {"q": ann.email}):
        with subtests.test(str(asked)):
            assert {one["action"] for one in rest.get("/admin-events", **asked).json()["results"]} >= actions


@pytest.mark.full
def test_older_pages_are_reached_new_events_shift_nothing_and_a_full_page_stays_light(
    chief: User, sign_in: SignIn
) -> None:
    long: dict[str, Any] = {"name": ["x" * 90, "y" * 90], "other": ["a" * 90, "b" * 90]}
    made = [f"a rather long name of a thing {number:02}" * 3 for number in range(60)]
    for label in made:
        event(by=chief, label=label, **long)
    client = sign_in(chief)

    first = client.get(f"{PATH}?actor=chief")
    event(by=chief, label="meanwhile")
    second = client.get(f"{PATH}?actor=chief&cursor={first.context['page'].older}")
    back = client.get(f"{PATH}?actor=chief&cursor={second.context['page'].newer}")

    assert wire_size(first) <= 30 * 1024
    assert f"?actor=chief&amp;cursor={first.context['page'].older}" in text(first)
    assert labels(first) == labels(back) == set(made[10:])
    assert labels(second) == set(made[:10])


# --- One event ----------------------------------------------------------------------------------------------------


def test_an_event_has_a_page_and_is_a_drawer_beside_the_list(chief: User, auditor: User, sign_in: SignIn) -> None:
    request, client = uuid4(), sign_in(auditor)
    shown = event(by=chief, correlation_id=request, label="CI bot", enabled=[True, False])
    event(correlation_id=request)
    drawer = HTMX | {"HX-Target": "drawer"}

    page = text(client.get(f"{PATH}{shown.uid}/"))
    opened = text(client.get(f"{PATH}{shown.uid}/?via=web", headers=drawer))

    assert "2 events from the same request" in page
    for words in (str(request), "203.0.113.9", "yes → <b>no</b>", "chief@example.com"):
        assert words in page
    assert opened.lstrip().startswith("<aside")
    assert f"{PATH}?via=web" in opened
    assert text(client.get(f"{PATH}?via=web", headers=drawer)).strip() == '<div id="drawer" hidden></div>'
    assert client.get(f"{PATH}{uuid4()}/").status_code == 404
    of_workspace = Event.objects.record(Action.WORKSPACE_UPDATED, WorkspaceSettings.load(), by=chief)
    link = re.search(r'href="([^"]*)">All its events<', text(client.get(f"{PATH}{of_workspace.uid}/")))
    assert link
    assert labels(client.get(unescape(link[1]))) == {of_workspace.target_label}


# --- The file -----------------------------------------------------------------------------------------------------


def export(client: Client, kind: str, query: str = "") -> Any:
    return client.get(f"{PATH}export/?{query}&format={kind}")


def body(response: Any) -> str:
    return b"".join(response.streaming_content).decode()


def test_a_file_has_what_the_filters_show_and_is_recorded_with_them(
    chief: User, auditor: User, sign_in: SignIn
) -> None:
    first = event(by=chief, label="=one", enabled=[True, False])
    event(Action.HOST_ENABLED, label="two")
    client = sign_in(auditor)

    response = export(client, "csv", "action=host.disabled&actor=chief")
    (row,) = rows_of(body(response))
    (line,) = rows_of(body(export(client, "jsonl", "action=host.disabled")))

    assert response["Content-Type"] == "text/csv; charset=utf-8"
    assert "attachment" in response["Content-Disposition"]
    assert (row["actor"], row["target"], row["via"]) == ("chief@example.com", "'=one", "web")
    assert json.loads(row["changes"]) == {"enabled": [True, False]}
    assert row["time"].endswith("Z")
    assert (line["id"], line["target"], line["changes"]) == (str(first.uid), "=one", {"enabled": [True, False]})
    assert export(client, "xml").status_code == export(client, "").status_code == 400
    taken = Event.objects.filter(action="events.exported").order_by("pk")
    assert [one.actor_email for one in taken] == [auditor.email] * 2
    assert taken[0].changes == {"action": [None, ["host.disabled"]], "actor": [None, "chief"]}


FORMULAS = [
    *("=", "+", "-", "@", "\t", "\r", "\n"),
    *("\uff1d", "\uff0b", "\uff0d", "\uff20", "\u2212", "\ufe66"),  # Full-width forms, minus, small equals sign.
    *(" =", "\u00a0=", "\u3000\uff1d", "\ufeff=", "\u200b=", "\u202e=", "\x0b=", "\u2028="),
    *("'=", '"=', ' "=', "\u201c=", "`="),
]
# Some spreadsheets begin a new cell at a semicolon or a tab.
AFTER_SEPARATORS = {
    "a;=1": "a;'=1",
    "a\t+1": "a\t'+1",
    'a; "@1': "a; \"'@1",
    "a\r\n -1": "a\r\n '-1",
    "\r\n=1": "'\r\n'=1",
}
TEXTS = ["a;b=1", "", "a=1", "x -1", "\u201cquoted\u201d", " a", "größe", "日本", "#1", "1", "'", '"']


@pytest.mark.full
def test_no_cell_is_a_formula_and_other_cells_stay_as_they_are(auditor: User, sign_in: SignIn) -> None:
    cells = {f"{sign}HYPERLINK(1)": f"'{sign}HYPERLINK(1)" for sign in FORMULAS}
    cells |= AFTER_SEPARATORS | {word: word for word in TEXTS}
    for label in cells:
        event(label=label)

    rows = rows_of(body(export(sign_in(auditor), "csv", "action=host.disabled")))

    assert dict(zip(cells, [row["target"] for row in rows][::-1], strict=True)) == cells
