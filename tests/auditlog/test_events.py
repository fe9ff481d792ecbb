"""The admin events: the page, one event, and the file."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import time_machine
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import Role, Team, User, WorkspaceSettings
from auditlog.actions import Action
from auditlog.events import ChangedField, changes_in_words
from auditlog.models import Event, EventContext, Via, use_context
from capabilities import Capability
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


@pytest.mark.full
@pytest.mark.parametrize("path", [PATH, f"{PATH}export/?format=csv", f"{PATH}{{uid}}/"])
def test_each_page_opens_with_its_capability_alone(path: str, auditor: User, sign_in: SignIn) -> None:
    path = path.format(uid=event().uid)

    assert Client().get(path)["Location"].startswith("/accounts/login/")
    assert sign_in(make.user(*(set(Capability) - {Capability.AUDIT_READ}))).get(path).status_code == 403
    assert sign_in(auditor).get(path).status_code == 200
    assert sign_in(auditor).post(path).status_code == 405


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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enabled": [True, False]}, ChangedField("enabled", "yes", "no")),
        ({"display_name": ["", "Bo"]}, ChangedField("display name", "none", "Bo")),
        ({"role": [None, "Member"]}, ChangedField("role", "none", "Member")),
        ({"users": [["a", "b"], ["b", "c"]]}, ChangedField("users", "a", "c")),
        ({"users": [[], ["a", "b"]]}, ChangedField("users", "none", "a, b")),
        ({"log_retention_days": [90, 0]}, ChangedField("log retention days", "90", "0")),
        ({"email": "x@example.com"}, ChangedField("email", None, "x@example.com")),
        ({"parts": [{"a": 1}, {"a": 2}]}, ChangedField("parts", '{"a": 1}', '{"a": 2}')),
        (
            {"expires_at": [None, "2026-11-24T09:05:00.123+00:00"]},
            ChangedField("expires at", "none", "Nov 24, 2026, 09:05 UTC"),
        ),
    ],
)
def test_a_change_is_told_in_words(changes: dict[str, Any], said: ChangedField) -> None:
    assert changes_in_words(changes) == [said]


def test_a_value_that_reads_the_same_did_not_change() -> None:
    assert changes_in_words({"alias": [None, ""], "name": ["a", "b"]}) == [ChangedField("name", "a", "b")]


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


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", {"one", "two", "three"}),
        ("?actor=chief", {"one"}),
        ("?actor={chief}", {"one"}),
        ("?action=host.enabled", {"two"}),
        ("?action=host.enabled&action=role.created", {"two", "three"}),
        ("?target=TW", {"two"}),
        ("?target=role", {"one", "two", "three"}),
        ("?via=api", {"three"}),
        ("?via=api&actor=chief", set()),
        ("?correlation={request}", {"two", "three"}),
        ("?correlation=nonsense", set()),
        ("?range=1h", {"one", "two", "three"}),
        ("?range=all", {"one", "two", "three", "ancient"}),
        ("?range=nonsense&action=nonsense&via=nonsense&cursor=nonsense", {"one", "two", "three"}),
        ("?actor=%00", {"one", "two", "three"}),
    ],
)
def test_the_query_string_narrows_the_list(
    query: str, found: set[str], chief: User, auditor: User, sign_in: SignIn
) -> None:
    with time_machine.travel(datetime.now(UTC) - timedelta(days=31)):
        event(label="ancient")
    request = uuid4()
    event(by=chief, label="one")
    event(Action.HOST_ENABLED, label="two", correlation_id=request)
    event(Action.ROLE_CREATED, label="three", via=Via.API, correlation_id=request)

    response = sign_in(auditor).get(PATH + query.format(chief=chief.pk, request=request))

    assert labels(response) == found


@pytest.mark.full
def test_the_history_of_one_target_is_found_by_its_id(chief: User, auditor: User, sign_in: SignIn) -> None:
    role = Role.objects.add(name="Watcher", capabilities=(), by=chief)
    role.edit(name="Watchers", capabilities=(), by=chief)
    Role.objects.add(name="Other", capabilities=(), by=chief)

    assert labels(sign_in(auditor).get(f"{PATH}?target={role.pk}")) == {"Watcher", "Watchers"}


@pytest.mark.full
def test_older_pages_are_reached_and_new_events_shift_nothing(auditor: User, sign_in: SignIn) -> None:
    for number in range(60):
        event(label=f"event {number:02}")
    client = sign_in(auditor)

    first = client.get(f"{PATH}?actor=system")
    event(label="meanwhile")
    second = client.get(f"{PATH}?actor=system&cursor={first.context['page'].older}")
    back = client.get(f"{PATH}?actor=system&cursor={second.context['page'].newer}")

    assert f"?actor=system&amp;cursor={first.context['page'].older}" in text(first)
    assert labels(first) == {f"event {number:02}" for number in range(10, 60)}
    assert labels(second) == {f"event {number:02}" for number in range(10)}
    assert labels(back) == labels(first)


@pytest.mark.full
def test_the_page_costs_the_same_for_few_and_for_many(
    auditor: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(20):
        event(name=["a", "b"])
    client = sign_in(auditor)

    with django_assert_num_queries(5):  # session, user, permissions, rows, count
        client.get(PATH)


@pytest.mark.full
def test_a_full_page_stays_light(chief: User, sign_in: SignIn) -> None:
    for number in range(50):
        event(
            by=chief,
            label=f"a rather long name of a thing {number}" * 3,
            name=["x" * 90, "y" * 90],
            other=["a" * 90, "b" * 90],
        )

    assert wire_size(sign_in(chief).get(PATH)) <= 30 * 1024


def test_htmx_gets_the_rows_and_what_depends_on_the_filters(auditor: User, sign_in: SignIn) -> None:
    event()

    response = sign_in(auditor).get(f"{PATH}?action=host.disabled&actor=", headers=HTMX)

    page = text(response)
    assert "<html" not in page
    assert 'id="event-count" hx-swap-oob="true"' in page
    assert "action=host.disabled&amp;format=csv" in page
    assert response["HX-Push-Url"] == f"{PATH}?action=host.disabled"


# --- One event ----------------------------------------------------------------------------------------------------


def test_an_event_has_a_page_of_its_own(chief: User, auditor: User, sign_in: SignIn) -> None:
    request = uuid4()
    shown = event(by=chief, correlation_id=request, label="CI bot", enabled=[True, False])
    event(correlation_id=request)

    page = text(sign_in(auditor).get(f"{PATH}{shown.uid}/"))

    for words in (str(request), "2 from the same request", "203.0.113.9", "yes → <b>no</b>", "chief@example.com"):
        assert words in page


def test_beside_the_list_only_the_drawer_is_sent(auditor: User, sign_in: SignIn) -> None:
    shown, client = event(), sign_in(auditor)

    opened = client.get(f"{PATH}{shown.uid}/?via=web", headers=HTMX | {"HX-Target": "drawer"})
    closed = client.get(f"{PATH}?via=web", headers=HTMX | {"HX-Target": "drawer"})

    assert text(opened).lstrip().startswith("<aside")
    assert f"{PATH}?via=web" in text(opened)
    assert text(closed).strip() == '<div id="drawer" hidden></div>'


def test_an_unknown_event_has_no_page(auditor: User, sign_in: SignIn) -> None:
    assert sign_in(auditor).get(f"{PATH}{uuid4()}/").status_code == 404


@pytest.mark.full
def test_targets_lead_to_their_pages_for_whom_these_are_open(chief: User, auditor: User, sign_in: SignIn) -> None:
    agent = make.agent(by=chief)
    gateway, server = make.gateway(by=chief), make.server(by=chief)
    team = Team.objects.add(name="Support", users=(), by=chief)
    role = Role.objects.add(name="Watcher", capabilities=(), by=chief)
    chief.edit(email=chief.email, display_name="Chief", by=chief)
    WorkspaceSettings.edit(by=chief, name="Acme")
    pages = {
        "host": f"/hosts/{agent.pk}/",
        "gateway": f"/gateways/{gateway.slug}/",
        "server": f"/servers/{server.slug}/",
        "team": f"/people/teams/{team.pk}/",
        "role": f"/people/roles/{role.pk}/",
        "user": f"/people/{chief.pk}/",
        "workspacesettings": "/settings/workspace",
    }
    seeing, looking = sign_in(chief), sign_in(auditor)

    for kind, url in pages.items():
        shown = Event.objects.filter(target_type=kind).latest("id")
        assert f'<a href="{url}">' in text(seeing.get(f"{PATH}{shown.uid}/"))
        assert seeing.get(url, follow=True).status_code == 200
        assert (f'<a href="{url}">' in text(looking.get(f"{PATH}{shown.uid}/"))) == (kind == "gateway")


@pytest.mark.full
def test_deleted_objects_have_no_link(chief: User, sign_in: SignIn) -> None:
    role = Role.objects.add(name="Watcher", capabilities=(), by=chief)
    pk = role.pk
    role.remove(by=chief)
    shown = Event.objects.get(action="role.removed")

    assert f"/people/roles/{pk}/" not in text(sign_in(chief).get(f"{PATH}{shown.uid}/"))


# --- The file -----------------------------------------------------------------------------------------------------


def export(client: Client, kind: str, query: str = "") -> Any:
    return client.get(f"{PATH}export/?{query}&format={kind}")


def body(response: Any) -> str:
    return b"".join(response.streaming_content).decode()


def test_the_csv_holds_what_is_filtered(chief: User, auditor: User, sign_in: SignIn) -> None:
    event(by=chief, label="one", enabled=[True, False])
    event(Action.HOST_ENABLED, label="two")

    response = export(sign_in(auditor), "csv", "action=host.disabled")
    rows = rows_of(body(response))

    assert response["Content-Type"] == "text/csv; charset=utf-8"
    assert "attachment" in response["Content-Disposition"]
    (row,) = rows
    assert (row["actor"], row["target"], row["via"]) == ("chief@example.com", "one", "web")
    assert json.loads(row["changes"]) == {"enabled": [True, False]}
    assert row["time"].endswith("Z")


FORMULAS = [
    *("=", "+", "-", "@", "\t", "\r", "\n"),
    *("\uff1d", "\uff0b", "\uff0d", "\uff20", "\u2212", "\ufe66"),  # Full-width forms, minus, small equals sign.
    *(" =", "\u00a0=", "\u3000\uff1d", "\ufeff=", "\u200b=", "\u202e=", "\x0b=", "\u2028="),
    *("'=", '"=', ' "=', "\u201c=", "`="),
]


@pytest.mark.parametrize("sign", FORMULAS)
def test_no_cell_is_a_formula(sign: str, auditor: User, sign_in: SignIn) -> None:
    event(label=f"{sign}HYPERLINK(1)")

    rows = rows_of(body(export(sign_in(auditor), "csv", "action=host.disabled")))

    assert rows[0]["target"] == f"'{sign}HYPERLINK(1)"


@pytest.mark.full
def test_a_formula_after_a_separator_is_text_too(auditor: User, sign_in: SignIn) -> None:
    """Some spreadsheets begin a new cell at a semicolon or a tab."""
    for label in ("a;=1", "a\t+1", 'a; "@1', "a\r\n -1", "\r\n=1", "a;b=1"):
        event(label=label)

    rows = rows_of(body(export(sign_in(auditor), "csv", "action=host.disabled")))

    assert [row["target"] for row in rows] == ["a;b=1", "'\r\n'=1", "a\r\n '-1", "a; \"'@1", "a\t'+1", "a;'=1"]


@pytest.mark.parametrize("word", ["", "a=1", "x -1", "\u201cquoted\u201d", " a", "größe", "日本", "#1", "1", "'", '"'])
def test_a_cell_that_is_no_formula_stays_as_it_is(word: str, auditor: User, sign_in: SignIn) -> None:
    event(label=word)

    rows = rows_of(body(export(sign_in(auditor), "csv", "action=host.disabled")))

    assert rows[0]["target"] == word


def test_json_lines_hold_one_event_each(auditor: User, sign_in: SignIn) -> None:
    first, second = event(label="=one", name=["a", "b"]), event(label="two")

    told_second, told_first = rows_of(body(export(sign_in(auditor), "jsonl", "action=host.disabled")))

    assert (told_first["id"], told_first["target"], told_first["changes"]) == (
        str(first.uid),
        "=one",
        {"name": ["a", "b"]},
    )
    assert told_second["id"] == str(second.uid)


@pytest.mark.parametrize("kind", ["", "xml"])
def test_other_formats_are_refused(kind: str, auditor: User, sign_in: SignIn) -> None:
    assert export(sign_in(auditor), kind).status_code == 400
    assert not Event.objects.filter(action="events.exported").exists()


def test_taking_them_away_is_recorded_with_the_filters(auditor: User, sign_in: SignIn) -> None:
    body(export(sign_in(auditor), "csv", "via=api&actor=chief"))

    taken = Event.objects.get(action="events.exported")
    assert taken.actor_email == auditor.email
    assert taken.changes == {"via": [None, ["api"]], "actor": [None, "chief"]}
