"""The API Tokens page."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import time_machine
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from capabilities import Capability
from capabilities.catalogue import including
from tests import make
from tests.conftest import SignIn, wire_size
from tests.tokens.rows import HTMX, a_connection, names, row, text
from tokens.models import Token, TokenKind
from tokens.rows import CARES, STATUSES, TokenFilter, token_counts

pytestmark = pytest.mark.django_db

PATH = "/settings/api-tokens"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_a_row_says_everything_5_8_asks_for(ana: User, sign_in: SignIn) -> None:
    with time_machine.travel(NOW, tick=False):
        github = make.server(name="GitHub")
        gateway = make.gateway(github, make.server(), name="Work")
        connection = make.connection(make.agent(by=ana, name="CI bot"), gateway, ana)
        new = make.token(connection, name="ci-pipeline", servers=[gateway.assignments.get(server=github)])
        Token.objects.filter(pk=new.token.pk).update(last_used_at=NOW - timedelta(minutes=5))

        page = sign_in(ana).get(PATH)

    heads = ("Name", "Prefix", "Host", "Gateway", "Servers", "Expiration date", "Last used date", "Status", "Actions")
    assert [head for head in heads if f">{head}</" in text(page)] == list(heads)
    for words in ("ci-pipeline", new.token.prefix, "CI bot", "Work", "GitHub", "Feb 18, 2027", "5m ago", ">active<"):
        assert words in row(page, new.token)
    assert new.secret not in text(page)


@pytest.mark.full
def test_one_sees_ones_own_and_no_key_of_an_app(ana: User, ann: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    make.token(connection, name="mine")
    make.token(a_connection(ann), name="hers")
    Token.objects.provide_key(a_connection(ana, name="app"), by=ana)

    page = sign_in(ana).get(PATH)

    assert names(page) == ["mine"]
    assert Token.objects.filter(kind=TokenKind.KEY).exists()


@pytest.mark.full
def test_everyones_tokens_need_the_capability(ann: User, sign_in: SignIn) -> None:
    make.token(a_connection(ann), name="hers")
    for capabilities, may in (
        (set(Capability) - including([Capability.API_TOKENS_READ]), False),
        ({Capability.API_TOKENS_READ}, True),
    ):
        client = sign_in(make.user(*capabilities))

        everyone = client.get(PATH, {"owner": "all"})

        assert everyone.status_code == (200 if may else 403)
        assert ("Everyone" in text(client.get(PATH))) is may
        assert not may or ann.email in row(everyone, Token.objects.get())


@pytest.mark.full
def test_the_query_string_narrows_the_list(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    client = sign_in(ana)
    for query, words in (
        ("", "You have no API tokens."),
        ("?owner=all", "Nobody has an API token yet."),
        ("?q=x", "No token matches."),
        ("?status=revoked", "No token with this status."),
    ):
        assert words in text(client.get(PATH + query))
    connection = a_connection(ana, name="Feedback bot")
    made = {name: make.token(connection, name=name).token for name in ("live", "soon", "old", "ended")}
    now = timezone.now()
    changes = {
        "live": {"last_used_at": now - timedelta(days=91)},
        "soon": {"expires_at": now + timedelta(days=2)},
        "old": {"expires_at": now - timedelta(seconds=1)},
        "ended": {"expires_at": now + timedelta(days=3)},
    }
    for name, change in changes.items():
        Token.objects.filter(pk=made[name].pk).update(**change)
    made["ended"].revoke(by=ana)

    for query, expected in (
        ("", ["soon", "live"]),
        ("?status=expired", ["old"]),
        ("?status=revoked", ["ended"]),
        ("?status=all", ["old", "soon", "ended", "live"]),
        ("?q=LIV", ["live"]),
        ("?q=feedback", ["soon", "live"]),
        (f"?q={made['soon'].prefix}", ["soon"]),
        ("?care=expiring", ["soon"]),
        ("?care=idle", ["live"]),
        ("?care=unused", ["soon"]),
        ("?status=nonsense&care=nonsense&page=nonsense", ["soon", "live"]),
    ):
        with subtests.test(query):
            assert names(client.get(PATH + query)) == expected


@pytest.mark.full
def test_the_segments_and_cards_count_what_they_open(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    make.token(connection)
    unlimited = make.token(connection).token
    Token.objects.filter(pk=unlimited.pk).update(expires_at=None, last_used_at=timezone.now())
    make.token(connection).token.revoke(by=ana)

    page = sign_in(ana).get(PATH)

    assert page.context["counts"] | {"active": 2, "expired": 0, "revoked": 1} == page.context["counts"]
    assert [(name, number) for name, _, number in page.context["cares"]] == [("unused", 1), ("unlimited", 1)]
    assert 'href="?care=unlimited"' in text(page)


def test_the_numbers_of_everyones_tokens_follow_the_page(ana: User, ann: User, sign_in: SignIn) -> None:
    make.token(a_connection(ann))
    make.token(a_connection(ana)).token.revoke(by=ana)
    browser = sign_in(ana)

    page = text(browser.get(PATH, {"owner": "all"}))
    [url] = re.findall(rf'hx-get="({PATH}/numbers[^"]*)"', page)
    numbers = browser.get(unescape(url), headers=HTMX)

    assert "counting…" in page
    assert 'id="count-active"' not in page
    assert numbers.context["counts"]["active"] == numbers.context["counts"]["revoked"] == 1
    assert {name: number for name, _, number in numbers.context["cares"]} == dict.fromkeys(CARES, 0) | {"unused": 1}
    assert text(numbers).count('hx-swap-oob="true"') == 3
    assert sign_in(ann).get(unescape(url)).status_code == 403


@pytest.mark.full
def test_tokens_that_need_care_are_amber(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    unlimited, soon = make.token(connection).token, make.token(connection, expires_in_days=7).token
    Token.objects.filter(pk=unlimited.pk).update(expires_at=None)

    page = sign_in(ana).get(PATH)

    assert '<span class="badge" data-kind="warn">No expiry</span>' in row(page, unlimited)
    assert '">in 6d</time></span>' in row(page, soon)


@pytest.mark.full
def test_a_row_offers_what_its_token_allows_and_never_claims_to_work_when_it_cannot(ana: User, sign_in: SignIn) -> None:
    token, client = make.token(a_connection(ana)).token, sign_in(ana)

    def offered() -> set[str]:
        seen = row(client.get(PATH, {"status": "all"}), token)
        assert ("Revoked <time" in seen) is (token.status == "revoked")
        return {verb for verb in ("edit", "regenerate", "revoke") if f"/tokens/{token.pk}/{verb}/" in seen}

    assert offered() == {"edit", "regenerate", "revoke"}
    for blocking, words in ((token.connection.gateway, "gateway"), (token.connection, "connection")):
        blocking.disable(by=ana)
        page = client.get(PATH)
        assert f">blocked: {words} disabled<" in row(page, token)
        assert '1</span> active, <span data-count="tokens.blocked">1</span> of them blocked' in text(page)
        assert offered() == {"edit", "revoke"}
        blocking.enable(by=ana)
    Token.objects.filter(pk=token.pk).update(expires_at=timezone.now())
    token.refresh_from_db()
    assert offered() == {"revoke"}
    token.revoke(by=ana)
    assert offered() == set()


@pytest.mark.full
def test_a_manager_asks_for_a_new_token_of_others_and_regenerates_none(ann: User, sign_in: SignIn) -> None:
    token = make.token(a_connection(ann)).token
    manager = sign_in(make.user(Capability.API_TOKENS_MANAGE))

    seen = row(manager.get(PATH, {"owner": "all"}), token)
    token.ask_for_new(by=make.user(*Capability))
    asked = row(manager.get(PATH, {"owner": "all", "status": "waiting"}), token)

    assert "/ask-for-new/" in seen
    assert "to be collected" in asked
    assert "/regenerate/" not in seen + asked
    assert "/ask-for-new/" not in asked
    assert "/collect/" not in asked


@pytest.mark.full
def test_the_list_costs_the_same_for_one_token_and_for_many(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(6):
        connection = a_connection(ana)
        make.token(connection)
        make.token(connection)
    client = sign_in(ana)

    # For the session, user, permissions, count, keys, rows, connections, scopes, numbers, notices (2)
    with django_assert_num_queries(12):
        client.get(PATH)


@pytest.mark.full
def test_a_full_page_stays_light(ana: User, sign_in: SignIn) -> None:
    for _ in range(7):
        connection = a_connection(ana)
        for _ in range(8):
            make.token(connection)

    page = sign_in(ana).get(PATH)

    assert len(page.context["rows"]) == 50
    assert wire_size(page) <= 30 * 1024


# --- Create Token -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_create_token_offers_the_agents_one_may_use(ana: User, ann: User, sign_in: SignIn) -> None:
    make.agent(by=ana, name="CI bot")
    make.agent(by=ana, name="Feedback bot").set_enrolment(True, by=ana)
    make.agent(by=ana, name="Off").disable(by=ana)

    everything = sign_in(ana).get(f"{PATH}/create")
    enrolment = sign_in(ann).get(f"{PATH}/create")

    assert [host.name for host in everything.context["hosts"]] == ["CI bot", "Feedback bot"]
    assert [host.name for host in enrolment.context["hosts"]] == ["Feedback bot"]
    assert 'action="/connect/" target="_blank" rel="noopener"' in text(everything)


@pytest.mark.full
def test_a_long_list_offers_a_few_agents_and_a_search_finds_the_rest(ana: User, sign_in: SignIn) -> None:
    for number in range(11):
        make.agent(by=ana, name=f"bot {number:02}")
    client = sign_in(ana)

    first = client.get(f"{PATH}/create", {"gateway": "work"})
    found = client.get(f"{PATH}/create", {"q": "10"}, headers=HTMX | {"HX-Target": "hosts"})

    assert '">3</span> more' in text(first)
    assert '<input type="hidden" name="gateway" value="work">' in text(first)
    assert [host.name for host in found.context["hosts"]] == ["bot 10"]
    assert text(found).lstrip().startswith('<fieldset class="field" id="hosts">')
    assert "No agent matches." in text(client.get(f"{PATH}/create", {"q": "x"}))


@pytest.mark.full
def test_as_many_are_told_as_are_found_by_every_filter(ana: User, ann: User) -> None:
    for person, agent in ((ana, "Ana's bot"), (ann, "Ann's bot")):
        connection = a_connection(person, name=agent)
        made = [make.token(connection, name=f"{name}-{n}").token for name in ("ci", "nightly") for n in range(4)]
        Token.objects.filter(pk=made[0].pk).update(expires_at=timezone.now())
        made[5].ask_for_new(by=make.user(*Capability))
        Token.objects.filter(pk=made[6].pk).update(expires_at=None, last_used_at=timezone.now())
        made[1].revoke(by=person)
    asked = [{"status": status} for status in STATUSES] + [{"care": care} for care in CARES]

    for words, found_of in (("", 16), ("ci", 8), ("ana's bot", 8), ("nobody", 0)):
        for of, tokens in ((None, Token.objects.all()), (ana, Token.objects.filter(connection__user=ana))):
            for narrowing in asked:
                filters = TokenFilter({"q": words, "owner": "" if of else "all", **narrowing})
                counts, found = filters.counted(tokens, of)
                assert found == filters.narrow(tokens).count(), (of, narrowing)
                assert counts == ({} if words else token_counts(tokens, of))
            everything = TokenFilter({"q": words, "owner": "" if of else "all", "status": "all"})
            assert of or everything.counted(tokens, of)[1] == found_of
