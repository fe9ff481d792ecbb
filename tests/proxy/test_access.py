"""Access decisions, made from the result of one SQL statement, follow docs/reference/decision-order.md."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from oauth2_provider.models import AccessToken, Application

from accounts.models import Team, User
from capabilities import Capability
from connections.models import Connection
from gatewayadmin.config import database
from gateways.models import Feature, Gateway, Reach
from hosts.models import Host, HostKind
from oauth.models import Binding
from proxy.access.decision import (
    DENIALS,
    Access,
    AccessQuery,
    AccessRow,
    FeatureRow,
    ServersNeeded,
    TokenDigests,
    Wanted,
    access_query,
    decide,
    find_again,
    parameters,
)
from proxy.reasons import REASONS
from proxy.store.pg import DatabaseUnavailable, StatementRejected
from tests import make
from tests.proxy.conftest import PUBLIC_URL, sql
from tokens.models import Token
from wire import jsonrpc, token_text

GOOD = AccessRow(
    token_id="t",
    token_name="ci",
    token_prefix="gwa_Ab3dE5gH",
    by_oauth=False,
    token_revoked=False,
    token_stale=False,
    token_expired=False,
    allowed_ips=None,
    connection_id="c",
    connection_revoked=False,
    connection_enabled=True,
    gateway_id="g",
    gateway_name="work",
    gateway_description="",
    gateway_matches=True,
    gateway_enabled=True,
    host_id="h",
    host_name="CI bot",
    host_enabled=True,
    host_pending=False,
    user_id="u",
    user_email="ana@example.com",
    user_active=True,
    reaches=True,
    host_allowed=True,
    assignments=(),
)

# Rows 4 to 10 of docs/reference/decision-order.md: the field, its value that refuses, and the reason.
ORDER = (
    ("token_revoked", True, "revoked"),
    ("token_stale", True, "stale_generation"),
    ("connection_revoked", True, "connection_revoked"),
    ("token_expired", True, "expired"),
    ("user_active", False, "user_inactive"),
    ("gateway_matches", False, "wrong_gateway"),
    ("allowed_ips", '["203.0.113.0/24"]', "ip"),
    ("host_enabled", False, "host_disabled"),
    ("host_pending", True, "host_pending"),
    ("gateway_enabled", False, "gateway_disabled"),
    ("connection_enabled", False, "connection_disabled"),
    ("reaches", False, "gateway_not_reachable"),
    ("host_allowed", False, "host_not_allowed_here"),
)

UNAUTHORIZED = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}'
FORBIDDEN = b'{"jsonrpc":"2.0","error":{"code":-32003,"message":"Forbidden"},"id":null}'
IP = b'{"jsonrpc":"2.0","error":{"code":-32003,"message":"IP Not Allowed"},"id":null}'


@pytest.mark.full
@given(st.sets(st.sampled_from(ORDER)))
def test_the_first_row_that_refuses_gives_the_reason(refusing: set[tuple[str, object, str]]) -> None:
    flipped: dict[str, Any] = {name: value for name, value, _ in refusing}
    grant = GOOD._replace(**flipped)
    expected = next((reason for row in ORDER if row in refusing for reason in [row[2]]), None)

    denied = decide(grant, "198.51.100.7")

    assert (denied.reason if denied else None) == expected


def test_an_app_with_a_token_of_another_gateway_is_told_to_get_one_of_this() -> None:
    denied = decide(GOOD._replace(by_oauth=True, gateway_matches=False), "127.0.0.1")

    assert denied == ("wrong_gateway", 401, UNAUTHORIZED)


def test_an_app_whose_url_names_no_gateway_is_not_sent_to_sign_in_again() -> None:
    denied = decide(GOOD._replace(by_oauth=True, gateway_matches=False, gateway_exists=False), "127.0.0.1")

    assert denied == ("wrong_gateway", 403, FORBIDDEN)


def test_every_dead_credential_gets_the_same_body() -> None:
    dead = ("unknown", "revoked", "stale_generation", "connection_revoked", "expired", "user_inactive")

    assert {DENIALS[reason][1:] for reason in dead} == {(401, UNAUTHORIZED)}


def test_a_live_token_is_told_what_refuses_it_except_at_another_gateway() -> None:
    assert DENIALS["wrong_gateway"][1:] == DENIALS["out_of_scope"][1:] == (403, FORBIDDEN)
    assert DENIALS["ip"][1:] == (403, IP)
    for reason in [reason for *_, reason in ORDER[7:]]:
        error = jsonrpc.loads(DENIALS[reason].body(PUBLIC_URL))["error"]
        assert (DENIALS[reason].status, error["code"], error["data"]) == (403, -32003, {"reason": reason})
        assert error["message"].startswith(REASONS[reason].sentence + f" {PUBLIC_URL}/")


@given(
    st.lists(st.ip_addresses(v=4).flatmap(lambda a: st.integers(8, 32).map(lambda n: f"{a}/{n}")), max_size=5),
    st.ip_addresses(),
)
def test_the_allowlist_is_a_list_of_ranges(ranges: list[str], address: object) -> None:
    canonical = [str(ip_network(each, strict=False)) for each in ranges]
    allowed = "[" + ",".join(f'"{each}"' for each in canonical) + "]"

    denied = decide(GOOD._replace(allowed_ips=allowed), str(address))

    assert (denied is None) == any(ip_address(str(address)) in ip_network(each) for each in canonical)


def test_an_unreadable_allowlist_and_a_caller_without_an_address_are_refused() -> None:
    for broken in ("nonsense", "{}", "[1]", '["x"]'):
        assert decide(GOOD._replace(allowed_ips=broken), "10.0.0.1") == DENIALS["ip"], broken
    assert decide(GOOD._replace(allowed_ips='["0.0.0.0/0"]'), "") == DENIALS["ip"]


# The SQL statement


@dataclass
class Known:
    """A stored token, and methods that decide requests with this token."""

    connection: Connection
    token_id: object
    secret: str

    def grant(self, slug: str = "", servers: ServersNeeded = ServersNeeded.NONE, tool: str = "") -> AccessRow | None:
        return ask([(self.secret, slug or self.connection.gateway.slug, servers, tool)])[0]

    def reason(self, slug: str = "") -> str | None:
        grant = self.grant(slug)
        assert grant is not None
        denied = decide(grant, "127.0.0.1")
        return denied.reason if denied else None


type Asked = list[tuple[str, str, ServersNeeded, str]]


def ask(questions: Asked, keys: list[bytes] | None = None) -> list[AccessRow | None]:
    """Return the result of each query, and fail if one has an error. The queries are sent together."""
    grants: list[AccessRow | None] = []
    for told in put(questions, keys):
        assert not isinstance(told, BaseException), told
        grants.append(told)
    return grants


def put(questions: Asked, keys: list[bytes] | None = None) -> list[AccessRow | BaseException | None]:
    """Return the result of each query, or its error. The queries are sent together.

    Calls use a smaller statement. Check that it gives the same results as the whole statement.
    """

    async def main() -> list[AccessRow | BaseException | None]:
        access = Access(database.conninfo(), keys or settings.TOKEN_KEYS)
        access.start()
        queries = [
            access_query(access.digests(secret), slug, Wanted(servers, "tool", tool))
            for secret, slug, servers, tool in questions
        ]
        try:
            grants = await asyncio.gather(*map(access.put, queries), return_exceptions=True)
            by_whole_statement = await find_again(access._connection.query_with_retry, queries)
            assert list(map(repr, by_whole_statement)) == list(map(repr, grants))
            return grants
        finally:
            await access.stop()

    return asyncio.run(main())


@pytest.fixture
def known(transactional_db: None) -> Known:
    user = make.user(email="ana@example.com")
    connection = make.connection(make.agent(by=user, name="CI bot"), make.gateway(slug="work"), user)
    issued = make.token(connection, name="ci-pipeline")
    return Known(connection, issued.token.pk, issued.secret)


@pytest.mark.full
def test_a_good_token_has_all_facts_and_no_other_secret_has_any(known: Known) -> None:
    grant = known.grant()

    assert grant is not None
    assert decide(grant, "127.0.0.1") is None
    assert grant == GOOD._replace(
        token_id=str(known.token_id),
        token_name="ci-pipeline",
        token_prefix=known.secret[:12],
        connection_id=str(known.connection.pk),
        gateway_id=grant.gateway_id,
        host_id=grant.host_id,
        user_id=grant.user_id,
    )
    assert ask([(token_text.mint(token_text.ACCESS), "work", ServersNeeded.NONE, "")]) == [None]
    sql("UPDATE tokens_token SET kind = 'key'")
    assert known.grant() is None


DECIDE = """
    INSERT INTO connections_hostatgateway (id, gateway_id, host_id, allowed, set_by_id, set_at)
    SELECT gen_random_uuid(), gateway_id, host_id, {}, user_id, now() FROM connections_connection
"""
FLIPS = [
    ("UPDATE tokens_token SET revoked_at = now(), revoke_reason = 'manual'", "revoked"),
    ("UPDATE connections_connection SET revoked_at = now(), revoke_reason = 'manual'", "connection_revoked"),
    ("UPDATE tokens_token SET expires_at = now()", "expired"),
    ("UPDATE tokens_token SET expires_at = now() + interval '1 hour'", None),
    ("UPDATE tokens_token SET expires_at = NULL", None),
    ("UPDATE accounts_user SET is_active = false", "user_inactive"),
    ("UPDATE gateways_gateway SET archived_at = now()", "wrong_gateway"),
    ("""UPDATE tokens_token SET allowed_ips = '["10.0.0.0/8"]'""", "ip"),
    ("""UPDATE tokens_token SET allowed_ips = '["127.0.0.0/8"]'""", None),
    ("UPDATE tokens_token SET allowed_ips = 'null'", None),
    ("UPDATE hosts_host SET enabled = false", "host_disabled"),
    ("UPDATE hosts_host SET archived_at = now()", "host_disabled"),
    ("UPDATE hosts_host SET needs_approval = true", "host_pending"),
    ("UPDATE hosts_host SET needs_approval = true, approved_at = now()", None),
    ("UPDATE gateways_gateway SET enabled = false", "gateway_disabled"),
    ("UPDATE connections_connection SET enabled = false", "connection_disabled"),
    ("UPDATE gateways_gateway SET reach = 'teams'", "gateway_not_reachable"),
    ("UPDATE gateways_gateway SET reach = 'nonsense'", "gateway_not_reachable"),
    ("UPDATE gateways_gateway SET reach = 'teams'; UPDATE accounts_user SET is_superuser = true", None),
    ("UPDATE gateways_gateway SET hosts_allowed = 'listed'", "host_not_allowed_here"),
    (f"UPDATE gateways_gateway SET hosts_allowed = 'listed'; {DECIDE.format('true')}", None),
    (DECIDE.format("false"), "host_not_allowed_here"),
]


RESTORE = """
    UPDATE tokens_token SET revoked_at = NULL, revoke_reason = '', expires_at = now() + interval '1 day';
    UPDATE tokens_token SET allowed_ips = NULL;
    UPDATE connections_connection SET revoked_at = NULL, revoke_reason = '', enabled = true;
    UPDATE accounts_user SET is_active = true, is_superuser = false;
    UPDATE gateways_gateway SET archived_at = NULL, enabled = true, reach = 'everyone', hosts_allowed = 'all';
    DELETE FROM connections_hostatgateway;
    UPDATE hosts_host SET enabled = true, archived_at = NULL, needs_approval = false, approved_at = NULL;
"""


@pytest.mark.full
def test_a_change_in_the_database_decides_the_next_request(known: Known) -> None:
    seen = []
    for flip, _ in FLIPS:
        sql(flip)
        seen.append((flip, known.reason()))
        sql(RESTORE)
        assert known.reason() is None

    assert seen == FLIPS


@pytest.mark.full
def test_a_token_is_for_its_own_gateway_only(known: Known) -> None:
    slugs = ["other", "WORK", "work-", "", "wörk", "w'ork", "x" * 100, "{}", '"', "\\", "work,work"]

    denials = [
        decide(grant, "127.0.0.1")
        for grant in ask([(known.secret, slug, ServersNeeded.NONE, "") for slug in slugs])
        if grant
    ]

    assert denials == [DENIALS["wrong_gateway"]] * len(slugs)


@pytest.mark.full
def test_reach_follows_teams_and_capabilities(known: Known) -> None:
    user, gateway = known.connection.user, known.connection.gateway
    sql("UPDATE gateways_gateway SET reach = 'teams'")
    assert known.reason() == "gateway_not_reachable"

    team = Team.objects.create(name="Platform")
    team.users.add(user)
    assert known.reason() == "gateway_not_reachable"
    gateway.teams.add(team)
    assert known.reason() is None
    team.users.clear()
    assert known.reason() == "gateway_not_reachable"

    user.role = make.role(Capability.GATEWAYS_USE)
    user.save()
    assert known.reason() is None
    user.role = make.role(*(set(Capability) - {Capability.GATEWAYS_USE}))
    user.save()
    assert known.reason() == "gateway_not_reachable"
    sql("UPDATE gateways_gateway SET reach = 'everyone'; UPDATE accounts_role SET uses_gateways = false")
    assert known.reason() == "gateway_not_reachable"
    assert gateway.reach == Reach.EVERYONE  # the loaded model is stale: the row was changed by SQL


@pytest.mark.full
def test_tokens_stay_known_while_keys_are_rotated(known: Known) -> None:
    newest = b"a newer key, thirty-two bytes long!"
    question = (known.secret, "work", ServersNeeded.NONE, "")

    assert ask([question], [newest]) == [None]
    grants = ask([question, question], [newest, *settings.TOKEN_KEYS])
    assert [grant.token_name for grant in grants if grant] == ["ci-pipeline"] * 2


ASKED = [(ServersNeeded.NONE, ""), (ServersNeeded.OF_FEATURE, "a__b"), (ServersNeeded.OF_FEATURE, "a__c")]


@pytest.mark.full
def test_equal_concurrent_queries_are_sent_once(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent calls of one tool by one agent share a query; calls at another gateway or of another tool do not."""
    assignment = make.assignment(known.connection.gateway, make.server(), alias="a")
    for name in ("b", "c"):
        Feature.objects.create(assignment=assignment, name=name, exposed_name=f"a__{name}")
    put: list[int] = []

    def counted(questions: Sequence[AccessQuery]) -> list[bytes]:
        put.append(len(questions))
        return parameters(questions)

    monkeypatch.setattr("proxy.access.decision.parameters", counted)

    grants = ask([(known.secret, slug, servers, tool) for slug in ("work", "other") for servers, tool in ASKED] * 3)

    assert put == [6, 6]  # Sent by the statement for calls, then by the whole statement.
    told = [
        (grant.gateway_matches, [row.name for each in grant.assignments for row in each.features or ()])
        for grant in grants
        if grant
    ]
    assert told == [(True, []), (True, ["b"]), (True, ["c"]), *[(False, [])] * 3] * 3


def test_facts_that_cannot_be_read_are_no_harm_to_others(known: Known, caplog: pytest.LogCaptureFixture) -> None:
    """A huge number in a tool's schema makes one row unreadable. Other queries of the statement get results."""
    user = known.connection.user
    other = make.connection(make.agent(by=user), make.gateway(make.server(), slug="b"), user)
    Feature.objects.create(assignment=other.gateway.assignments.get(), name="bomb", exposed_name="b__bomb")
    questions = [
        (known.secret, "work", ServersNeeded.NONE, ""),
        (make.token(other).secret, "b", ServersNeeded.OF_FEATURE, "b__bomb"),
    ]
    sql("UPDATE gateways_assignment SET alias = 'b'")
    sql("UPDATE servers_server SET protocol_era = 'modern'")

    def told(digits: int) -> list[AccessRow | BaseException | None]:
        sql("UPDATE gateways_feature SET input_schema = %s::jsonb", f'{{"x-mcp-header": 1{"0" * digits}}}')
        return put(questions)

    first, second = told(400)
    assert isinstance(first, AccessRow)
    assert isinstance(second, AccessRow)
    assert second.assignments[0].features == [
        FeatureRow("bomb", "b__bomb", True, {"x-mcp-header": 10**400}, "approved", None, None, "tool")
    ]

    first, second = told(5000)
    assert isinstance(first, AccessRow)
    assert isinstance(second, DatabaseUnavailable)
    assert [record.getMessage() for record in caplog.records] == ["a token's row from the database cannot be read"]


TOOLS = ["", "a__b", "\\", '"', "'", "{,}", "\0", "\udfff", "NULL", "ü日\n\t", "x" * 5000, "a__b_0123ab", "%s", "$1"]


@pytest.mark.full
def test_no_name_of_a_tool_breaks_the_statement_or_another_query_of_it(known: Known) -> None:
    assert None not in ask([(known.secret, "work", ServersNeeded.OF_FEATURE, tool) for tool in TOOLS])


@pytest.mark.full
def test_parameters_are_well_formed_arrays(transactional_db: None) -> None:
    with psycopg.connect(database.conninfo()) as connection:

        @given(st.text())
        def stored_as_given(tool: str) -> None:
            arrays = parameters(
                [AccessQuery(TokenDigests((b"\x00\xff",), (None,)), "work", Wanted(ServersNeeded.ALL, "tool", tool))]
            )
            result = connection.pgconn.exec_params(b"SELECT ($1::text[])[1], ($2::bytea[])[1]", [arrays[5], arrays[1]])
            assert (result.get_value(0, 0) or b"").decode() == tool.replace("\0", "")
            assert result.get_value(0, 1) == b"\\x00ff"

        stored_as_given()


async def test_without_a_database_nothing_is_known() -> None:
    access = Access("host=/nowhere dbname=none", settings.TOKEN_KEYS)
    access.start()

    with pytest.raises(DatabaseUnavailable):
        await access.find_grant(access.digests(token_text.mint(token_text.ACCESS)), "work")

    await access.stop()


@pytest.mark.full
def test_a_lost_connection_is_replaced_by_the_next_request(known: Known) -> None:
    async def main() -> tuple[object, object]:
        access = Access(database.conninfo(), settings.TOKEN_KEYS)
        access.start()
        before = await access.find_grant(access.digests(known.secret), "work")
        async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as admin:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'gateway access'"
            )
        after = await access.find_grant(access.digests(known.secret), "work")
        await access.stop()
        return before, after

    before, after = asyncio.run(main())
    assert before == after
    assert before is not None


@pytest.mark.full
def test_a_statement_that_is_refused_refuses_access(known: Known) -> None:
    async def main() -> None:
        access = Access(database.conninfo(), settings.TOKEN_KEYS)
        access.start()
        try:
            await access.find_grant(access.digests(known.secret), "work")
        finally:
            await access.stop()

    sql("ALTER TABLE tokens_token RENAME TO tokens_elsewhere")
    try:
        with pytest.raises((DatabaseUnavailable, StatementRejected)):
            asyncio.run(main())
    finally:
        sql("ALTER TABLE tokens_elsewhere RENAME TO tokens_token")


# Tokens of apps


@pytest.fixture
def app_token(transactional_db: None) -> Known:
    """Return a headed app's access token, bound to the app's connection and the current generation of its key."""
    user = make.user(email="ana@example.com")
    return token_of_app(user, make.gateway(slug="work"))


def token_of_app(user: User, gateway: Gateway) -> Known:
    """Return an app's access token of this person at this gateway."""
    host = Host.objects.create(kind=HostKind.HEADED, name="Claude Desktop")
    connection = make.connection(host, gateway, user)
    key = Token.objects.provide_key(connection, by=user)
    secret = token_text.mint(token_text.OAUTH_ACCESS)
    application = Application.objects.create(client_type="public", authorization_grant_type="authorization-code")
    access = AccessToken.objects.create(
        user=user, application=application, token=secret, expires=timezone.now() + timedelta(hours=1), scope="mcp"
    )
    Binding.objects.create(connection=connection, access_token=access, generation=key.generation)
    return Known(connection, key.pk, secret)


@pytest.mark.full
def test_an_apps_token_stands_for_the_key_of_its_connection_and_dies_with_it(app_token: Known) -> None:
    user, grant = app_token.connection.user, app_token.grant()
    assert grant is not None
    assert (grant.by_oauth, grant.token_id, grant.token_name) == (True, str(app_token.token_id), "key")
    assert grant.host_name == "Claude Desktop"
    assert app_token.reason() is None
    assert app_token.reason("elsewhere") == "wrong_gateway"
    make.gateway(slug="other")
    asked = [(app_token.secret, slug, ServersNeeded.NONE, "") for slug in ("other", "elsewhere")]
    assert [found and found.gateway_exists for found in ask(asked)] == [True, False]

    Token.objects.renew_key(app_token.connection, by=user)
    assert app_token.reason() == "stale_generation"
    sql("UPDATE oauth_binding SET generation = 2")
    assert app_token.reason() is None

    sql("UPDATE oauth2_provider_accesstoken SET expires = now()")
    assert app_token.reason() == "expired"
    sql("UPDATE oauth2_provider_accesstoken SET expires = now() + interval '1 hour'")

    app_token.connection.revoke(by=user)
    assert app_token.reason() == "revoked"
    sql("UPDATE tokens_token SET revoked_at = NULL, revoke_reason = ''")
    assert app_token.reason() == "connection_revoked"

    sql("DELETE FROM oauth_binding")
    assert app_token.grant() is None


@pytest.mark.full
def test_each_kind_of_token_is_looked_for_in_its_own_table_only(app_token: Known) -> None:
    as_access = "gwa" + app_token.secret[3:]

    assert ask([(as_access, "work", ServersNeeded.NONE, "")]) == [None]
    sql("UPDATE oauth2_provider_accesstoken SET token_checksum = ''")
    assert ask([(as_access, "work", ServersNeeded.NONE, ""), (app_token.secret, "work", ServersNeeded.NONE, "")]) == [
        None,
        None,
    ]
