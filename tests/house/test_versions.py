"""Concurrent edits: the second person sees the first person's changes, loses no input, and may save anyway."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client

from accounts.models import Role, Team, User, WorkspaceSettings
from auditlog.models import Event
from auditlog.versions import ChangedMeanwhile, FormSeen
from capabilities import Capability
from connections.models import Connection
from servers.models import AuthType
from tests import make
from tests.cases import sampled
from tests.house.doors import browser, session_of
from tests.rest import Rest
from tests.undone import undone


@dataclass
class Edited:
    """An object to edit, the URL of its form, two changes to it, and its path in REST."""

    thing: Any
    form: str
    first: dict[str, Any]
    second: dict[str, Any]
    rest: str = ""


def _server(boss: User) -> Edited:
    server = make.server(by=boss, url="https://93.184.216.34/mcp")
    one, two = {"name": "Renamed"}, {"timeout_seconds": 60}
    return Edited(server, f"/servers/{server.slug}/edit/", one, two, f"/servers/{server.slug}")


def _gateway(boss: User) -> Edited:
    gateway = make.gateway(by=boss)
    one, two = {"name": "Renamed"}, {"description": "For everyone."}
    return Edited(gateway, f"/gateways/{gateway.slug}/rename/", one, two, f"/gateways/{gateway.slug}")


def _limit(boss: User) -> Edited:
    gateway = make.gateway(by=boss)
    one, two = {"calls_per_minute": 10}, {"calls_per_minute": 20}
    return Edited(gateway, f"/gateways/{gateway.slug}/limit/", one, two, f"/gateways/{gateway.slug}")


def _assignment(boss: User) -> Edited:
    gateway, server = make.gateway(by=boss), make.server(by=boss)
    row = make.assignment(gateway, server)
    one, two = {"alias": "first"}, {"alias": "second"}
    return Edited(row, f"/assignments/{row.pk}/edit/", one, two, f"/gateways/{gateway.slug}/servers/{row.pk}")


def _host(boss: User) -> Edited:
    host = make.agent(by=boss)
    return Edited(
        host, f"/hosts/{host.pk}/rename/", {"name": "Renamed"}, {"description": "Runs at night."}, f"/hosts/{host.pk}"
    )


def _role(boss: User) -> Edited:
    role = make.role(Capability.LOGS_READ, Capability.HOSTS_READ)
    one, two = {"name": "Renamed"}, {"capabilities": ["logs:read"]}
    return Edited(role, f"/people/roles/{role.pk}/", one, two, f"/roles/{role.pk}")


def _team(boss: User) -> Edited:
    team = Team.objects.add(name="Night shift", users=[], by=boss)
    return Edited(team, f"/people/teams/{team.pk}/rename/", {"name": "One"}, {"name": "Two"}, f"/teams/{team.pk}")


def _person(boss: User) -> Edited:
    person = make.user(email="lee@example.com", display_name="Lee")
    one, two = {"display_name": "Lee A."}, {"email": "lee.b@example.com"}
    return Edited(person, f"/people/{person.pk}/edit/", one, two, f"/users/{person.pk}")


def _role_of_person(boss: User) -> Edited:
    person, one, two = make.user(), make.role(), make.role()
    first, second = {"role": one.pk}, {"role": two.pk}
    return Edited(person, f"/people/{person.pk}/role/", first, second)


def _workspace(boss: User) -> Edited:
    one, two = {"name": "Renamed"}, {"log_retention_days": 120}
    return Edited(WorkspaceSettings.load(), "/settings/workspace", one, two, "/workspace")


def _token(boss: User) -> Edited:
    token = make.token(make.connection(make.agent(by=boss), make.gateway(by=boss), boss), expires_in_days=30).token
    one, two = {"name": "renamed"}, {"calls_per_minute": 5}
    return Edited(token, f"/tokens/{token.pk}/edit/", one, two, f"/tokens/{token.pk}")


KINDS: dict[str, Callable[[User], Edited]] = {
    "server": _server,
    "gateway": _gateway,
    "limit of a gateway": _limit,
    "assignment": _assignment,
    "host": _host,
    "role": _role,
    "team": _team,
    "person": _person,
    "role of a person": _role_of_person,
    "workspace": _workspace,
    "token": _token,
}


@pytest.fixture
def boss(db: None) -> User:
    return make.user(*Capability, email="boss@example.com")


@pytest.fixture
def page(boss: User) -> Client:
    return browser(session_of(boss))


def opened(page: Client, edited: Edited) -> dict[str, Any]:
    """Return the form's fields as a browser would send them back unchanged."""
    answer = page.get(edited.form)
    form = answer.context["form"]
    fields = {bound.html_name: bound.value() for bound in form}
    if "capabilities" in fields:
        fields["capabilities"] = [one.slug for one in Role.objects.get(pk=edited.thing.pk).capabilities]
    kept = {name: value for name, value in fields.items() if value not in (None, False)}
    return kept | {"version": answer.context["version"]}


def clash_of(answer: Any) -> ChangedMeanwhile:
    found: ChangedMeanwhile = answer.context["clash"]
    return found


@pytest.mark.parametrize("step", sampled(len(KINDS)))
def test_the_second_to_save_a_form_is_told_what_changed_and_may_save_on_top(
    boss: User, page: Client, step: int, subtests: pytest.Subtests
) -> None:
    for kind in [*KINDS][::step]:
        with subtests.test(kind):
            edited = KINDS[kind](boss)
            if kind == "token":
                edited.first["expires_in_days"] = edited.second["expires_in_days"] = "30"
            early, late = opened(page, edited), opened(page, edited)
            first, second = early | edited.first, late | edited.second

            saved = page.post(edited.form, first)
            assert saved.status_code == 302, (saved.status_code, saved.context and saved.context["form"].errors)
            refused = page.post(edited.form, second)

            assert refused.status_code == 422
            field = next(iter(set(edited.first) - {"expires_in_days"}))
            told = {change.field: change for change in clash_of(refused).changes}
            assert told[field].by == "boss@example.com"
            assert told[field].at is not None
            assert "Nothing was saved" in refused.content.decode()
            typed = next(iter(set(edited.second) - {"expires_in_days"}))
            assert str(refused.context["form"][typed].value()) == str(edited.second[typed])
            assert page.post(edited.form, second | {"version": refused.context["version"]}).status_code == 302


def version_of(answer: Any) -> str:
    """Return the part of the ETag that is the version of the editable values."""
    version, dot, _ = answer["ETag"].partition(".")
    assert dot
    return f'{version}"'


@pytest.mark.parametrize("step", sampled(len(KINDS)))
def test_a_request_that_names_an_older_version_changes_nothing_and_is_told_what_changed(
    boss: User, step: int, subtests: pytest.Subtests
) -> None:
    api = Rest.of(boss)
    for kind in [kind for kind in KINDS if kind != "role of a person"][::step]:
        with subtests.test(kind):
            edited = KINDS[kind](boss)
            tagged = api.get(edited.rest)
            tag, first, second = tagged["ETag"], edited.first, edited.second

            done = api.send("patch", edited.rest, first, headers={"If-Match": tag})
            refused = api.send("patch", edited.rest, second, headers={"If-Match": tag})

            assert done.status_code == 200, done.content
            assert refused.status_code == 412, refused.content
            assert next(iter(first)) in {one["field"] for one in refused.json()["changed"]}
            assert {one["by"] for one in refused.json()["changed"]} == {"boss@example.com"}
            assert done["ETag"] == api.get(edited.rest)["ETag"] != tag
            assert refused["ETag"] == version_of(done) != version_of(tagged)
            assert api.send("patch", edited.rest, second, headers={"If-Match": refused["ETag"]}).status_code == 200


def test_if_match_is_compared_as_rfc_9110_says(boss: User) -> None:
    edited, api = _server(boss), Rest.of(boss)
    tag = api.get(edited.rest)["ETag"]
    accepted = ("", "*", tag, f'"other", {tag}')

    for sent in (f"W/{tag}", '"other"', tag.strip('"'), *accepted):
        with undone():
            answer = api.send("patch", edited.rest, {"name": "Renamed"}, headers={"If-Match": sent} if sent else {})
            assert answer.status_code == (200 if sent in accepted else 412), sent
            edited.thing.refresh_from_db()
            assert (edited.thing.name == "Renamed") == (sent in accepted), sent


def test_hidden_fields_are_no_reason_to_refuse(boss: User, page: Client) -> None:
    edited = _server(boss)
    form = opened(page, edited) | edited.second
    edited.thing.disable(by=boss)

    assert page.post(edited.form, form).status_code == 302


def test_a_deletion_of_an_outdated_version_is_refused(boss: User) -> None:
    edited, api = _team(boss), Rest.of(boss)
    tag = api.get(edited.rest)["ETag"]
    edited.thing.edit(name="Other", users=[], by=boss)

    assert api.send("delete", edited.rest, None, headers={"If-Match": tag}).status_code == 412
    assert Team.objects.filter(pk=edited.thing.pk).exists()


def _connection(boss: User) -> Connection:
    return make.connection(make.agent(by=boss), make.gateway(by=boss), boss)


def _api_key(boss: User) -> tuple[str, str]:
    return f"/api-keys/{make.api_key(make.user(Capability.LOGS_READ), Capability.LOGS_READ).key.pk}", "revoke"


ACTIONS: dict[str, Callable[[User], tuple[str, str]]] = {
    "disable a server": lambda boss: (f"/servers/{make.server(by=boss).slug}", "disable"),
    "test a server": lambda boss: (f"/servers/{make.server(by=boss).slug}", "test"),
    "disable a gateway": lambda boss: (f"/gateways/{make.gateway(by=boss).slug}", "disable"),
    "disable a host": lambda boss: (f"/hosts/{make.agent(by=boss).pk}", "disable"),
    "disable a connection": lambda boss: (f"/connections/{_connection(boss).pk}", "disable"),
    "revoke a connection": lambda boss: (f"/connections/{_connection(boss).pk}", "revoke"),
    "regenerate a key": lambda boss: (
        f"/connections/{make.token(_connection(boss)).token.connection_id}",
        "regenerate",
    ),
    "rotate a token": lambda boss: (f"/tokens/{make.token(_connection(boss)).token.pk}", "rotate"),
    "revoke a token": lambda boss: (f"/tokens/{make.token(_connection(boss)).token.pk}", "revoke"),
    "disable an identity": lambda boss: (
        f"/identities/{make.identity(make.server(auth_type=AuthType.BEARER), boss).pk}",
        "disable",
    ),
    "revoke an API key": _api_key,
    "deactivate a person": lambda boss: (f"/users/{make.user().pk}", "deactivate"),
    "cut a person off": lambda boss: (f"/users/{make.user().pk}", "cut-off"),
}


@pytest.mark.full
def test_an_action_on_another_version_changes_nothing(boss: User, subtests: pytest.Subtests) -> None:
    api = Rest.of(boss)
    for act, begin in ACTIONS.items():
        with subtests.test(act):
            path, verb = begin(boss)
            now, events = api.get(path), Event.objects.count()

            for tag in ('"another"', f"W/{now['ETag']}"):
                refused = api.send("post", f"{path}/{verb}", None, headers={"If-Match": tag})
                assert (refused.status_code, refused.json()["code"]) == (412, "changed_meanwhile"), refused.content
                assert refused["ETag"] == version_of(now)
            assert api.get(path).json() == now.json()
            assert Event.objects.count() == events
            done = api.send("post", f"{path}/{verb}", None, headers={"If-Match": now["ETag"]})
            assert done.status_code in (200, 204), done.content


def test_an_action_tells_who_changed_the_thing_meanwhile(boss: User) -> None:
    api, connection = Rest.of(boss), _connection(boss)
    path = f"/connections/{connection.pk}"
    tag = api.get(path)["ETag"]
    connection.disable(by=boss)

    refused = api.send("post", f"{path}/revoke", None, headers={"If-Match": tag})

    assert refused.status_code == 412
    (change,) = refused.json()["changed"]
    assert (change["field"], change["value"], change["by"]) == ("enabled", False, boss.email)
    assert api.send("post", f"{path}/revoke", None, headers={"If-Match": "*"}).status_code == 200


def test_the_django_admin_tells_what_changed_and_keeps_what_is_typed(boss: User) -> None:
    boss.is_staff = True
    boss.save()
    page, host = browser(session_of(boss)), make.agent(by=boss, name="Night bot")
    path = f"/admin/hosts/host/{host.pk}/change/"
    form = {"name": "Night bot", "description": "Typed here", "version": host.version}
    host.rename(name="Night bot", description="By somebody else", by=boss)

    refused = page.post(path, form)

    assert refused.status_code == 200
    assert "By somebody else" in refused.content.decode()
    assert "Typed here" in refused.content.decode()
    host.refresh_from_db()
    assert host.description == "By somebody else"
    again = {**form, "version": refused.context["adminform"].form.version}
    assert page.post(path, again).status_code == 302
    host.refresh_from_db()
    assert host.description == "Typed here"


@pytest.mark.django_db(transaction=True)
def test_the_version_is_compared_under_the_lock_of_the_row() -> None:
    by = make.user(*Capability)
    server = make.server(by=by, auth_type=AuthType.NONE)
    seen = FormSeen(server.version)
    outcome: list[object] = []

    def late() -> None:
        try:
            type(server).objects.get(pk=server.pk).edit(by=by, seen=seen, name="late", timeout_seconds=9)
            outcome.append("saved")
        except ChangedMeanwhile as clash:
            outcome.append([change.field for change in clash.changes])
        finally:
            connection.close()

    with transaction.atomic():
        server.edit(by=by, name="early")
        writer = threading.Thread(target=late)
        writer.start()
        writer.join(0.3)
        assert outcome == []  # The writer waits for the row's lock.
    writer.join()

    assert outcome == [["name"]]
