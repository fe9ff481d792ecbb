"""Filters accept id, slug or name everywhere, in upper or lower case; an unknown name is an error."""

from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from capabilities import Capability
from tests import make
from tests.api.test_matrix import DOORS
from tests.api.world import build
from tests.calls import call
from tests.rest import Rest, errors, results
from ui.rest import SubjectField

pytestmark = pytest.mark.django_db

THINGS = {"host", "gateway", "server", "user", "token", "connection", "role", "team", "actor"}


@pytest.fixture
def boss() -> User:
    return make.user(*Capability, email="boss@example.com")


def test_every_parameter_that_names_a_thing_takes_it_alike() -> None:
    otherwise = {
        f"{door.name} {name}"
        for door in DOORS
        for name, field in door.operation.query().fields.items()
        if name in THINGS and not isinstance(field, SubjectField)
    }

    assert otherwise == set()


@pytest.mark.full
def test_a_name_that_means_nothing_is_refused_by_every_list() -> None:
    world = build()
    rest = Rest.of(world.boss)
    for door in DOORS:
        for name, field in door.operation.query().fields.items():
            if isinstance(field, SubjectField):
                told = errors(rest.get(door.path(world), **{name: "no such thing"}))
                needed = {each for each, one in door.operation.query().fields.items() if one.required} - {name}
                assert told.pop(name) == [f"There is no {field.noun} “no such thing”."], door.name
                assert told.keys() == needed, door.name


@pytest.mark.full
def test_an_id_a_slug_and_a_name_mean_the_same_in_any_case(boss: User) -> None:
    gateway = make.gateway(slug="work", name="Work of all")
    token, _ = make.token(make.connection(make.agent(by=boss, name="CI bot"), gateway, boss))
    rest = Rest.of(boss)

    def found(**query: Any) -> list[str]:
        return [row["id"] for row in results(rest.get("/tokens", **query))]

    for form in (str, str.upper):
        for name in (str(gateway.pk), "work", "Work of all"):
            assert found(gateway=form(name)) == [str(token.pk)]
        assert found(host=form("CI bot")) == found(user=form("boss@example.com")) == [str(token.pk)]


@pytest.mark.full
def test_a_misspelled_name_gets_a_suggestion(boss: User) -> None:
    for name in ("CI bot", "CI bot 2", "Night run"):
        make.agent(by=boss, name=name)
    rest = Rest.of(boss)

    assert errors(rest.get("/tokens", host="ci")) == {
        "host": ["There is no host “ci”. Did you mean “CI bot” or “CI bot 2”?"]
    }
    assert errors(rest.get("/logs", host="nihgt run")) == {
        "host": ["There is no host “nihgt run”. Did you mean “Night run”?"]
    }


@pytest.mark.full
def test_nobody_learns_of_things_out_of_their_sight(boss: User) -> None:
    somebody = make.user(email="pat@elsewhere.org")
    make.connection(make.agent(by=boss, name="Hidden bot"), make.gateway(slug="work"), boss)

    told = errors(Rest.of(somebody).get("/connections", host="hidden bot", user="boss@example.com"))

    assert told == {
        "host": ["There is no host “hidden bot”."],
        "user": ["There is no person “boss@example.com”."],
    }


SINGLE_ROWS = (
    Capability.API_TOKENS_MANAGE,
    Capability.MCP_CONNECTIONS_READ,
    Capability.MCP_CONNECTIONS_REVOKE,
    Capability.CONNECTIONS_TOGGLE,
    Capability.IDENTITIES_MANAGE,
    Capability.LOGS_READ,
)


@pytest.mark.full
def test_a_thing_that_no_list_shows_one_is_answered_for_as_if_it_did_not_exist(
    boss: User, subtests: pytest.Subtests
) -> None:
    """If none of the lists that a person may read shows an object, filters answer as if the object did not exist."""
    things: dict[str, Any] = {
        "user": make.user(email="zoe@zz.io"),
        "gateway": make.gateway(name="Unknown gateway", slug="unknown", reach="teams"),
        "host": make.agent(by=boss, name="Unknown bot"),
        "server": make.server(name="Unknown server", slug="unseen"),
    }
    names = {"user": "zoe@zz.io", "gateway": "unknown", "host": "Unknown bot", "server": "unseen"}
    # These capabilities also show some objects: creating tokens shows agents, and seeing identities shows servers.
    readable = {Capability.API_TOKENS_MANAGE: {"host"}, Capability.IDENTITIES_MANAGE: {"server"}}
    lists = {
        "/connections": ("user", "host", "gateway"),
        "/tokens": ("user", "host", "gateway"),
        "/identities": ("user", "server"),
        "/logs": tuple(things),
    }

    for capability in SINGLE_ROWS:
        rest = Rest.of(make.user(capability))
        for path, name in ((path, name) for path, filters in lists.items() for name in filters):
            with subtests.test(f"{capability.slug} {path} {name}"):
                for text in (names[name], str(things[name].pk)):
                    answer = rest.get(path, **{name: text})
                    if path == "/logs" and capability is not Capability.LOGS_READ:
                        assert answer.status_code == 403
                    elif name in readable.get(capability, ()):
                        assert results(answer) == []
                    else:
                        noun = "person" if name == "user" else name
                        assert errors(answer) == {name: [f"There is no {noun} “{text}”."]}


@pytest.mark.full
def test_the_log_is_filtered_by_all_that_calls_name(boss: User) -> None:
    """A person who may only read the log can filter it by each object that a call names, even a refused call."""
    gateway, server, host = make.gateway(slug="gone"), make.server(slug="gone-server"), make.agent(by=boss, name="Gone")
    token = make.token(make.connection(host, gateway, boss), name="refused").token
    one = call(
        host_id=host.pk, gateway_id=gateway.pk, server_id=server.pk, user_id=boss.pk, token_id=token.pk,
        connection_id=token.connection_id, outcome="denied",
    )  # fmt: skip
    named = {"host": "gone", "gateway": "gone", "server": "gone-server", "user": "boss@example.com"}
    named |= {"token": "refused", "connection": str(token.connection_id)}
    rest = Rest.of(make.user(Capability.LOGS_READ))

    for name, text in named.items():
        assert [row["id"] for row in results(rest.get("/logs", **{name: text}))] == [str(one.uid)], name


@pytest.mark.full
def test_near_names_are_told_of_what_one_reads_in_lists_alone(boss: User) -> None:
    make.user(email="patricia@example.com")
    connected = make.user(email="patrick@example.com")
    gateway = make.gateway(slug="work")
    make.agent(by=boss, name="Night bot of nobody")
    make.token(make.connection(make.agent(by=boss, name="Night bot"), gateway, boss), name="nightly")
    make.connection(make.agent(by=boss, name="Night run"), gateway, connected)

    told = errors(Rest.of(make.user(Capability.CONNECTIONS_TOGGLE)).get("/connections", user="patri", host="night"))
    everybody = Rest.of(make.user(Capability.PEOPLE_MANAGE, Capability.MCP_CONNECTIONS_READ))

    assert told == {
        "user": ["There is no person “patri”. Did you mean “patrick@example.com”?"],
        "host": ["There is no host “night”. Did you mean “Night bot” or “Night run”?"],
    }
    assert errors(everybody.get("/connections", user="patri")) == {
        "user": ["There is no person “patri”. Did you mean “patricia@example.com” or “patrick@example.com”?"]
    }


@pytest.mark.full
def test_near_names_in_the_log_are_told_of_what_has_called(boss: User) -> None:
    patrick = make.user(email="patrick@example.com")
    connection = make.connection(make.agent(by=boss, name="Night bot"), make.gateway(slug="work"), patrick)
    issued = make.token(connection, name="nightly")
    rest = Rest.of(make.user(Capability.LOGS_READ))

    before = errors(rest.get("/logs", user="patri", token="night"))
    for row in (connection, issued.token):
        row.last_used_at = timezone.now()
        row.save(update_fields=["last_used_at"])
    after = errors(rest.get("/logs", user="patri", token="night"))

    assert before == {"user": ["There is no person “patri”."], "token": ["There is no token “night”."]}
    assert after == {
        "user": ["There is no person “patri”. Did you mean “patrick@example.com”?"],
        "token": ["There is no token “night”. Did you mean “nightly”?"],
    }


@pytest.mark.full
def test_a_server_that_left_a_gateway_is_out_of_sight_with_it() -> None:
    somebody = make.user()
    assignment = make.assignment(make.gateway(slug="work"), make.server(slug="docs"))
    rest = Rest.of(somebody)
    assert results(rest.get("/identities", server="docs")) == []

    assignment.remove(by=somebody)

    assert errors(rest.get("/identities", server="docs")) == {"server": ["There is no server “docs”."]}


@pytest.mark.full
def test_a_renamed_thing_is_found_by_its_present_name(boss: User) -> None:
    host = make.agent(by=boss, name="Old name")
    one = call(host_id=host.pk, host_name="Old name")
    host.rename(name="New name", description="", by=boss)
    rest = Rest.of(boss)

    assert [row["id"] for row in results(rest.get("/logs", host="new name"))] == [str(one.uid)]
    assert set(errors(rest.get("/logs", host="old name"))) == {"host"}


@pytest.mark.full
def test_the_search_of_the_page_works_here_under_the_same_name(boss: User) -> None:
    one = call(feature_type="tool", feature_name="docs__echo", http_status=403, user_email="ana@example.com")
    call(feature_type="tool", feature_name="other")
    rest = Rest.of(boss)

    for q in ("echo", "status is 403", "tool contains echo and status >= 400", "ana@"):
        assert [row["id"] for row in results(rest.get("/logs", q=q))] == [str(one.uid)], q
        assert rest.client.get("/logs/", {"q": q, "range": "all"}).content.decode().count(f"/logs/{one.uid}/")
    assert errors(rest.get("/logs", q="status is"))["q"] == ["Position 10: A value is missing after “is”."]
