"""The Logs page: its search, filters, bars and files, and limits on how much of the log a request reads."""

import html
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import User
from auditlog import search as criteria
from auditlog.charts import BARS, histogram
from auditlog.fields import FIELDS
from auditlog.models import ENDINGS, Call, Event, Outcome
from auditlog.names import MAX_IDS
from auditlog.query_language import parse_search
from auditlog.search import Search, parameter_criteria
from capabilities import Capability
from gateways.models import Assignment, Feature
from proxy.store.call_log import new_uid
from tests import make
from tests.conftest import SignIn
from tests.exported import rows_of
from tests.rest import Rest
from tests.undone import undone

pytestmark = pytest.mark.django_db


def text(response: Any) -> str:
    body = b"".join(response.streaming_content) if response.streaming else response.content
    return str(body.decode())


def ago(**span: float) -> datetime:
    return datetime.now(UTC) - timedelta(**span)


def found(query: str) -> set[str]:
    """Return the tool names of the calls that match a search."""
    return {call.feature_name for call in Search(parse_search(query)).page(None, 50).page.rows}


@pytest.fixture
def three() -> dict[str, Call]:
    bot = make.agent(by=make.user(), name="CI bot")
    return {
        "a": make.call(
            feature_name="a", host_id=bot.pk, host_name="Its old name", duration_ms=10, client_ip="10.0.0.1"
        ),
        "b": make.call(feature_name="b", outcome="tool_error", user_email="ben@example.com", duration_ms=900),
        "c": make.call(
            feature_name="c",
            outcome="denied",
            deny_reason="host_disabled",
            http_status=403,
            host_name="Gone",
            connection_id=uuid4(),
            rpc_error_code=-32003,
        ),
    }


def test_words_and_ids_find_calls(three: dict[str, Call], subtests: pytest.Subtests) -> None:
    queries = {
        "": "abc",
        "error": "b",
        "outcome is not ok": "bc",
        "duration > 500": "b",
        "duration <= 10 and ok": "a",
        "host is ci bot": "a",
        "host contains bot": "a",
        "host is gone": "c",
        "host is nobody": "",
        "host is not CI bot": "bc",
        "tool contains B": "b",
        "tool is not b": "ac",
        "user is BEN@example.com": "b",
        "reason is host_disabled": "c",
        "status is 403 and code is -32003": "c",
        "ip is 10.0.0.1": "a",
        "ip is nowhere": "",
        "method is tools/call and tool is a and ok": "a",
        "connection is nothing": "",
        "error and denied": "",
        "error or denied": "bc",
        "tool is a or tool is c and denied": "ac",
        "BEN@example": "b",
        "nobody": "",
        f"connection is {three['c'].connection_id}": "c",
        f"correlation is {three['b'].correlation_id}": "b",
        f"host is {three['a'].host_id}": "a",
    }
    for query, names in queries.items():
        with subtests.test(query):
            assert found(query) == set(names)


@pytest.mark.full
def test_a_pasted_id_opens_its_call_whenever_it_was(three: dict[str, Call], ana: User, sign_in: SignIn) -> None:
    old = make.call(feature_name="old", at=ago(days=3))
    uid = new_uid(datetime.now(UTC).timestamp())
    alone = make.call(feature_name="alone", uid=uid, correlation_id=uid)
    client = sign_in(ana)

    for pasted in (str(three["b"].uid), f" {three['b'].correlation_id} ", str(three["b"].uid).replace("-", "")):
        assert client.get("/logs/", {"q": pasted})["Location"] == f"/logs/{three['b'].uid}/", pasted
    for call in (old, alone):
        assert client.get("/logs/", {"q": str(call.uid)})["Location"] == f"/logs/{call.uid}/"
    shown = client.get("/logs/", {"q": str(three["b"].uid)}, headers={"HX-Request": "true"})
    assert shown["HX-Redirect"] == f"/logs/{three['b'].uid}/"
    search = Search(parse_search(str(alone.uid)))
    assert search.count().number == len(search.page(None, 50).page.rows) == 1


@pytest.mark.full
def test_an_id_of_nothing_finds_nothing_whatever_its_number(
    three: dict[str, Call], ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    client = sign_in(ana)
    recent = new_uid(datetime.now(UTC).timestamp())
    for uid in (UUID(int=0), UUID(int=2**128 - 1), UUID("ff8d1727-8166-441f-a3d6-5632d7756bc7"), uuid4(), recent):
        with subtests.test(str(uid)):
            assert client.get("/logs/", {"q": str(uid)}).context["page"].rows == []
            assert client.get(f"/logs/{uid}/").status_code == 404
            assert client.get(f"/api/logs/{uid}").status_code == 404


@pytest.mark.full
def test_the_id_of_something_or_of_a_trace_finds_its_calls(ana: User, sign_in: SignIn) -> None:
    connection_id, trace = uuid4(), "0af7651916cd43dd8448eb211c80319c"
    for name in ("one", "two"):
        make.call(feature_name=name, connection_id=connection_id)
    make.call(feature_name="traced", trace_id=trace)

    page = sign_in(ana).get("/logs/", {"q": str(connection_id)})

    assert {call.feature_name for call in page.context["page"].rows} == {"one", "two"}
    assert found(trace) == {"traced"}


@pytest.mark.full
def test_the_name_a_server_gives_a_tool_finds_it_under_what_clients_call_it(three: dict[str, Call]) -> None:
    gateway = make.gateway(make.server())
    assignment = gateway.assignments.get()
    Assignment.objects.filter(pk=assignment.pk).update(alias="docs")
    assignment.refresh_from_db()
    Feature.objects.learn(assignment, [{"name": "echo"}])
    make.call(feature_name="docs__echo")

    assert found("tool is echo") == found("tool is docs__echo") == {"docs__echo"}
    assert found("tool is not echo") == {"a", "b", "c"}


@pytest.mark.full
def test_the_name_of_a_token_finds_its_calls_also_if_more_tokens_have_it_than_are_looked_up(ana: User) -> None:
    links = [make.connection(make.agent(by=ana), make.gateway(), ana) for _ in range(MAX_IDS + 1)]
    for link in links:
        token = make.token(link, name="issued lately").token
        make.call(feature_name="mine", token_id=token.pk, token_name=token.name, token_prefix=token.prefix)
    make.call(feature_name="another", token_name="another")

    ours = links[0].tokens.get()
    for query in ("token contains issued", "token is issued lately", "issued"):
        assert found(query) == {"mine"}, query
    assert found(f"token is {ours.prefix}") == found(ours.prefix) == {"mine"}
    assert found("token is not issued lately") == {"another"}


def test_a_subject_that_is_nobody_is_said_to_be_unknown(ana: User, sign_in: SignIn) -> None:
    make.call(user_id=ana.pk, user_email=ana.email)
    client = sign_in(ana)

    for query, said in {
        "user is carl": "No call has the user “carl”.",
        "user is ana": "No call has the user “ana”. Some names contain it; search for: user contains ana.",
        "host contains nothing-like-it": "No call has “nothing-like-it” in the name of its host.",
        "gateway is x and error": "No call has the gateway “x”.",
        "019362f0-0000-7000-8000-000000000001": "No call has this id",
    }.items():
        assert said in text(client.get("/logs/", {"q": query}))


@pytest.mark.full
def test_nobody_learns_from_the_log_of_what_has_not_called(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    asked = (
        "user is boss@example.com",
        "user is boss",
        "host is Secret bot",
        "host contains secret",
        "token is hidden",
    )

    def said(query: str) -> list[str]:
        return re.findall(r"No call has (?:the \w+ “|“)[^<]+", text(client.get("/logs/", {"q": query})))

    before = [said(query) for query in asked]
    boss = make.user(email="boss@example.com")
    make.token(make.connection(make.agent(by=boss, name="Secret bot"), make.gateway(), boss), name="hidden")

    assert [said(query) for query in asked] == before
    assert all(before)


def test_a_search_that_does_not_parse_says_so_and_shows_nothing(
    three: dict[str, Call], ana: User, sign_in: SignIn
) -> None:
    page = text(sign_in(ana).get("/logs/", {"q": "error and colour is <b>red</b>"}))
    too_long = text(sign_in(ana).get("/logs/", {"q": "x" * 501}))

    assert ("A search has at most 500 characters." in too_long, "row-link" in too_long) == (True, False)
    assert page.count("Position 11: “colour” is not a field.") == 1
    assert "Nothing is listed" in page
    assert "row-link" not in page
    assert "Count the values" not in page
    assert "&lt;b&gt;red" in page


# --- Searches without an index ------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_page_that_finds_too_little_says_how_far_it_looked_and_goes_on(
    ana: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "SEARCH_LIMIT", 5)
    for minutes in range(20):
        make.call(at=ago(minutes=minutes), feature_name=f"slow-{minutes}" if minutes in (1, 13, 18) else "fast")
    client = sign_in(ana)

    seen, links, path = [], 0, "/logs/?q=tool+contains+slow"
    while path:
        response = client.get(path)
        seen += [call.feature_name for call in response.context["page"].rows]
        older = response.context["page"].older
        assert bool(older) == bool(response.context["looked_to"])
        assert ("Search further" in text(response)) == bool(older)
        path, links = (f"/logs/?q=tool+contains+slow&cursor={older}" if older else ""), links + 1

    assert seen == ["slow-1", "slow-13", "slow-18"]
    assert links == 4
    back = client.get(f"/logs/?q=tool+contains+slow&cursor=n{'1' * 10}-0")
    assert back.context["page"].newer is not None


def test_the_newest_of_a_kind_come_from_its_index(subtests: pytest.Subtests) -> None:
    make.call()
    indexes = {
        "outcome = 'timeout'": "outcome_created_at_idx",
        "method = 'ping'": "method_created_at_idx",
        "feature_name = 'echo'": "feature_name_created_at_idx",
        "host_id = '0199f5a0-0000-7000-8000-000000000000'": "host_id_created_at_idx",
        "outcome = 'ok'": "pkey",
        "method = 'tools/call'": "pkey",
    }
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off")
        for condition, index in indexes.items():
            cursor.execute(f"EXPLAIN SELECT uid FROM auditlog_call WHERE {condition} ORDER BY created_at DESC LIMIT 50")
            plan = [line for (line,) in cursor.fetchall()]
            scans = [line for line in plan if "Scan" in line]
            with subtests.test(condition):
                assert scans
                assert all("Index Scan Backward" in line for line in scans), "\n".join(plan)
                # In a partition that autovacuum considers nearly empty, any index is equally cheap.
                assert [index in line for line in scans].count(True) > len(scans) / 2, "\n".join(plan)


def test_calls_with_a_label_come_from_the_index_of_labelled_calls() -> None:
    make.call()
    (labelled,) = parameter_criteria(FIELDS["label"], "payments")
    with connection.cursor() as cursor:
        # In small tables other plans cost the same. In order of time, only this index needs no sorting.
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")

    plan = Call.objects.filter(labelled.test).order_by("created_at").explain()

    assert re.search(r"(?:using|on) auditlog_call_[\d_]+_created_at_idx", plan), plan


@pytest.mark.full
def test_no_list_reads_a_partition_from_end_to_end(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    make.call()
    client = sign_in(ana)
    addresses = [
        *("/logs/", "/logs/?range=all", "/logs/?tool=x", "/logs/?method=ping", "/logs/?outcome=timeout"),
        *("/logs/?outcome=ok", "/logs/?method=tools/call&range=all", "/logs/?q=duration+>+500"),
        *(f"/logs/?{name}={uuid4()}" for name in ("host", "gateway", "server", "user", "connection")),
        f"/logs/?outcome=timeout&outcome=denied&host={uuid4()}",
        "/logs/values/host/?outcome=denied",
    ]
    for address in addresses:
        with CaptureQueriesContext(connection) as asked:
            client.get(address)
        of_log = [one["sql"] for one in asked.captured_queries if "auditlog_call" in one["sql"]]
        statements = [sql for sql in of_log if "pg_inherits" not in sql]  # Listing the partitions reads no rows.
        with subtests.test(address), undone(), connection.cursor() as cursor:
            assert statements
            # Small tables are always read sequentially; the test checks that an index could be used instead.
            cursor.execute("SET LOCAL enable_seqscan = off")
            for statement in statements:
                assert "LIMIT" in statement or "GROUP BY" in statement or "COUNT(" in statement
                cursor.execute(f"EXPLAIN {statement}")
                plan = "\n".join(line for (line,) in cursor.fetchall())
                assert "Seq Scan on auditlog_call" not in plan, f"{statement}\n{plan}"


# --- Facets -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_filter_opens_with_its_values_under_the_other_filters(ana: User, sign_in: SignIn) -> None:
    ci, nightly = uuid4(), uuid4()
    for _ in range(3):
        make.call(host_id=ci, host_name="CI <b>bot</b>")
    make.call(host_id=nightly, host_name="Nightly", outcome="denied")
    client = sign_in(ana)

    opened = text(client.get(f"/logs/values/host/?range=7d&host={nightly}&tool="))
    left_out = text(client.get(f"/logs/?not_host={nightly}"))
    narrowed = text(client.get("/logs/values/host/?outcome=denied"))

    bot = "CI &lt;b&gt;bot&lt;/b&gt;"
    assert f'name=host value="{ci}"><span>{bot}</span></label><span class=count>3</span>' in opened
    assert f'value="{nightly}" checked><span>Nightly</span>' in opened
    assert f'name=not_host value="{nightly}" aria-label="Not Nightly" checked' in left_out
    assert "<b>Host is not</b> Nightly" in left_out
    assert "Nightly" in opened
    assert "Nightly" in narrowed
    assert "CI" not in narrowed
    assert client.get("/logs/values/colour/").status_code == 404


@pytest.mark.full
def test_a_value_counts_what_it_would_leave_of_what_is_filtered(ana: User, sign_in: SignIn) -> None:
    for outcome, host in (("ok", "a"), ("ok", "b"), ("denied", "b")):
        make.call(outcome=outcome, host_name=host, host_id=UUID(int=ord(host)))

    page = sign_in(ana).get(f"/logs/?outcome=ok&not_host={UUID(int=ord('a'))}")
    found = {facet.name: {line.label: line.calls for line in facet.lines or ()} for facet in page.context["facets"]}

    assert found["outcome"] == {"ok": "1", "denied": "1"}
    assert found["host"] == {"a": "1", "b": "1"}


# --- Bars ---------------------------------------------------------------------------------------------------------


def test_bars_and_the_times_below_them_end_now(db: None, subtests: pytest.Subtests) -> None:
    """The last bar ends now for any range, because a bar in the future would always be empty."""
    for minutes in (0.6, 29, 31, 60, 61, 24 * 60, 7 * 24 * 60 + 1):
        now = ago(minutes=0)
        make.call(at=ago(seconds=1))
        drawn = histogram(Search([], ago(minutes=minutes)))
        gaps = {after - before for before, after in pairwise(drawn.marks[:-1])}
        with subtests.test(str(minutes)):
            assert drawn.bars[-1].since <= drawn.marks[-1] <= ago(minutes=0)
            assert drawn.marks[-1] >= now
            assert max(gaps) - min(gaps) < timedelta(milliseconds=1)
            assert BARS / 2 <= len(drawn.bars) <= BARS
            assert drawn.bars[-1].total >= 1


@pytest.mark.full
def test_bars_count_what_the_words_of_the_search_find() -> None:
    for outcome in Outcome.values:
        make.call(at=ago(minutes=5), outcome=outcome)

    drawn = histogram(Search([], ago(hours=24)))

    words = {ending: "refused" if ending == "denied" else ending for ending in ENDINGS}
    assert drawn.totals == {ending: Search(parse_search(word)).count().number for ending, word in words.items()}
    assert drawn.totals["cancelled"] == 1
    assert sum(drawn.totals.values()) == len(Outcome.values)


@pytest.mark.full
def test_moments_in_the_address_narrow_and_can_be_removed(ana: User, sign_in: SignIn) -> None:
    make.call(at=datetime(2026, 3, 4, 12, 30, tzinfo=UTC), feature_name="then")
    make.call(feature_name="now")

    response = sign_in(ana).get("/logs/?from=2026-03-04T12:00Z&to=2026-03-04T13:00Z&tool=then")

    assert [call.feature_name for call in response.context["page"].rows] == ["then"]
    assert 'href="/logs/?tool=then" aria-label="Remove filter: Time  Mar 4 12:00 to Mar 4 13:00"' in text(response)
    assert "in mar 4 12:00 to mar 4 13:00" in text(response)
    assert sign_in(ana).get("/logs/?from=nonsense&to=%00").context["page"].rows[0].feature_name == "now"


# --- Files --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_file_holds_what_the_page_shows_and_is_recorded(three: dict[str, Call], ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)

    rows = rows_of(text(client.get("/logs/export/?q=error&format=csv")))
    lines = rows_of(text(client.get("/logs/export/?format=jsonl")))

    assert [row["feature_name"] for row in rows] == ["b"]
    assert {line["feature_name"] for line in lines} == {"a", "b", "c"}
    assert "request_payload" not in lines[0]
    event = Event.objects.filter(action="logs.exported").latest("pk")
    assert (event.actor_email, event.changes) == (ana.email, {})


def test_no_file_is_made_of_a_question_that_is_none(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    for query in ("", "format=xlsx", "format=csv&q=nonsense+is+x", f"format=csv&q={'x' * 501}"):
        assert client.get(f"/logs/export/?{query}").status_code == 400, query
    assert not Event.objects.filter(action="logs.exported").exists()


# --- Repeat the call -----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_call_can_be_copied_as_a_command_without_its_token(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway(slug="work")
    call = make.call(gateway_id=gateway.pk, feature_name="it's", token_prefix="gwa_Ab3dE5gH")

    page = text(sign_in(ana).get(f"/logs/{call.uid}/"))

    command = page.split('id="curl-command"')[1].split("</pre>")[0]
    assert "/mcp/work" in command
    assert "Bearer $GATEWAY_TOKEN" in command
    assert "gwa_" not in command
    assert "it" in command
    gone = make.call(gateway_id=uuid4())
    assert 'id="curl-command"' not in text(sign_in(ana).get(f"/logs/{gone.uid}/"))


def test_the_command_asks_what_the_call_asked_and_no_payload_of_it(sign_in: SignIn) -> None:
    """A copied command contains payloads only for users who may see them."""
    client, gateway = sign_in(make.user(Capability.LOGS_READ)), make.gateway()
    recorded: dict[str, Any] = {"params": {"name": "add", "arguments": {"a": 1}}}
    commands: list[tuple[dict[str, Any], str]] = [
        ({"method": "tools/list", "feature_name": ""}, "{}"),
        ({"method": "initialize", "protocol_version": "2025-06-18"}, '{"protocolVersion": "2025-06-18", '),
        ({"method": "initialize"}, '{"protocolVersion": "2025-11-25", '),
        ({"feature_name": "add", "request_payload": recorded}, '{"name": "add", "arguments": {}}'),
    ]
    for fields, params in commands:
        call = make.call(gateway_id=gateway.pk, **fields)
        page = html.unescape(text(client.get(f"/logs/{call.uid}/")))
        assert f'"params": {params}' in page.split('id="curl-command"')[1].split("</pre>")[0]


# --- The last days first, then the whole log ----------------------------------------------------------------------


SPREAD = [*range(6), 8, 15, 16, 40, 90]  # Days ago.


@pytest.mark.full
def test_pages_hold_every_row_once_however_far_apart_they_are(db: None, subtests: pytest.Subtests) -> None:
    made = [
        make.call(
            at=ago(days=days), feature_type="tool", feature_name="common" if n % 3 else "rare", duration_ms=50 * n
        )
        for n, days in enumerate(SPREAD)
    ]
    queries = ("", "tool is common", "duration > 100", "tool is common and duration > 100")
    for words, size in product(queries, (1, 5, 50)):
        with subtests.test(f"{words}, {size}"):
            wanted = [one.pk for one in made if _meets(one, words)]
            search = Search(parse_search(words))
            pages = [search.page(None, size).page]
            while pages[-1].older is not None:
                pages.append(search.page(pages[-1].older, size).page)
            found = [row.pk for page in pages for row in page.rows]
            page, back = pages[-1], list[int]()
            while page.newer is not None:
                page = search.page(page.newer, size).page
                back = [row.pk for row in page.rows] + back

            assert found == wanted
            assert [*back, *found[len(back) :]] == wanted
            assert search.count() == (len(wanted), True)


def _meets(one: Call, words: str) -> bool:
    return ("tool" not in words or one.feature_name == "common") and ("duration" not in words or one.duration_ms > 100)


# --- Several values of a filter ---------------------------------------------------------------------------------


@pytest.mark.full
def test_calls_of_many_values_are_each_listed_once_in_their_order(
    ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    hosts, now = [uuid4() for _ in range(27)], datetime.now(UTC)
    calls = [make.call(at=now - timedelta(seconds=n // 3), host_id=hosts[n % 27], host_name="x") for n in range(108)]
    newest = sorted(calls, key=lambda call: (call.created_at, call.pk), reverse=True)
    expected = [str(call.uid) for call in newest if call.host_id in hosts[:20]]
    values = [str(hosts[0]).upper(), f"{{{hosts[1]}}}", *map(str, hosts[:20])]
    client = sign_in(ana)

    for more in ("range=7d", "range=all", "range=7d&not_outcome=denied"):
        address = f"/logs/?{more}&" + "&".join(f"host={value}" for value in values)
        with subtests.test(more):
            with CaptureQueriesContext(connection) as statements:
                first = client.get(address).context
            rest = client.get(f"{address}&cursor={first['page'].older}").context["page"]
            assert [str(row.uid) for row in (*first["page"].rows, *rest.rows)] == expected
            assert first["count"].number == len(expected)
            assert len([chip for chip in first["chips"] if chip.label == "Host"]) == 20
            assert len(statements) < 40


def test_two_names_of_one_host_list_its_calls_once(ana: User) -> None:
    agent = make.agent(by=ana, name="nightly builder")
    make.call(host_id=agent.pk, host_name=agent.name, feature_name="mine")

    assert Search(parse_search("host contains night or host contains builder")).count().number == 1
    both = criteria.either(
        [criteria.criterion(parse_search(f"host contains {part}")[0]) for part in ("night", "builder")]
    )
    assert Search([both]).count().number == len(Search([both]).page(None, 50).page.rows) == 1


@pytest.mark.full
def test_a_search_of_two_filters_reads_no_more_than_one_of_them_has_however_few_it_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(criteria, "SEARCH_LIMIT", 3)
    host = uuid4()
    for _ in range(5):
        make.call(host_id=host)
        make.call(outcome="denied")
    make.call(host_id=host, outcome="denied")
    both = Search(parse_search(f"host is {host} and outcome is denied"))
    one = Search(parse_search(f"correlation is {make.call().correlation_id}"))

    assert (both.count().number, one.count().number) == (1, 1)
    assert both.floor is not None
    assert one.floor is None


def test_the_oldest_call_is_found_where_the_first_partitions_have_none() -> None:
    Call.partitions.make_for((datetime.now(UTC) - timedelta(days=12)).date())
    at = ago(days=3)
    assert Call.objects.oldest() is None

    make.call(at=at)
    make.call()

    assert Call.objects.oldest() == at


@pytest.mark.parametrize("words", ["status > 40000", "status is -1", "status is 403.5", "response > 3000 mb"])
def test_a_number_that_no_call_can_have_finds_nothing(
    words: str, three: dict[str, Call], ana: User, sign_in: SignIn
) -> None:
    rest, browser = Rest.of(ana), sign_in(ana)
    query = urlencode({"q": words})

    assert rest.get(f"/logs?outcome=ok&outcome=denied&{query}").json()["results"] == []
    assert rest.get(f"/logs/groups?{query}").json()["results"] == []
    for path in ("/logs/?host=CI+bot&", "/logs/groups/?", "/logs/export/?format=csv&"):
        assert browser.get(path + query).status_code == 200


def test_an_id_that_is_none_opens_no_values(ana: User, sign_in: SignIn) -> None:
    assert sign_in(ana).get("/logs/values/user/?tab=host&host=%00").status_code == 200
