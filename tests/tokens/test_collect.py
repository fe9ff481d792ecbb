"""Replacing another person's token on request: the owner collects the new secret, and nobody else sees it."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from django.core import mail
from django.db import connection, connections
from django.test import Client
from django.utils import timezone

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection, HostAtGateway
from gatewayadmin.config.key_uses import key_uses
from gatewayadmin.rest.urls import urlpatterns as api_urls
from proxy.access.decision import ServersNeeded
from tests import make
from tests.conftest import SignIn
from tests.house.test_routes import routes
from tests.proxy.conftest import sql
from tests.proxy.test_access import ask
from tests.rest import Rest, problem
from tests.tokens.rows import HTMX, ON_LIST, a_connection, row, secret_in, text
from tests.tokens.test_rotation import EIGHT
from tokens.models import AskedForNew, Issued, NothingToCollect, NotYourToken, Superseded, Token, TokenError
from wire import token_text

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss() -> User:
    return make.user(*Capability, email="boss@example.com")


@pytest.fixture
def issued(ann: User, ana: User) -> Issued:
    """A token of a person without capabilities."""
    link = make.connection(make.agent(by=ana, name="CI bot"), make.gateway(name="Work"), ann)
    return make.token(link, name="ci", allowed_ips=["127.0.0.0/8"])


@pytest.fixture
def waiting(issued: Issued, boss: User) -> Token:
    issued.token.ask_for_new(by=boss)
    return Token.objects.get(pk=issued.token.pk)


def secrets_in(told: str) -> set[str]:
    return {found for found in token_text.PATTERN.findall(told) if token_text.well_formed(found)}


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_asking_ends_both_secrets_and_keeps_the_rest(issued: Issued, boss: User, ann: User) -> None:
    kept = ("pk", "name", "prefix", "expires_at", "allowed_ips", "scope_all", "connection_id", "generation")
    second = issued.token.rotate(by=ann, overlap_hours=24)
    before = Token.objects.values(*kept).get()
    questions = [
        (one, issued.token.connection.gateway.slug, ServersNeeded.NONE, "") for one in (issued.secret, second.secret)
    ]
    assert None not in ask(questions)

    Token.objects.get().ask_for_new(by=boss)

    assert ask(questions) == [None, None]
    assert Token.objects.values(*kept).get() == before
    token = Token.objects.get()
    assert (token.status, token.digest, token.previous_digest, token.key_id) == ("waiting", None, None, "")
    assert not +key_uses()[0].uses
    assert (Token.objects.active().count(), Token.objects.lasting().count()) == (0, 1)


@pytest.mark.full
def test_asked_for_twice_the_new_secret_exists_once_its_owner_collects_it(
    waiting: Token, ana: User, ann: User, boss: User
) -> None:
    first = waiting.asked_at
    waiting.ask_for_new(by=ana)
    waiting.refresh_from_db()
    assert (waiting.asked_at, waiting.asked_by) == (first, boss)
    assert Event.objects.filter(action="token.asked_for_new").count() == 1
    with connection.cursor() as cursor:
        cursor.execute("SELECT t::text FROM tokens_token t")
        before = str(cursor.fetchall())
    with pytest.raises(NotYourToken):
        waiting.collect(by=boss)
    User.objects.filter(pk=ann.pk).update(is_active=False)
    ann.refresh_from_db()
    with pytest.raises(NotYourToken):
        Token.objects.get().collect(by=ann)
    User.objects.filter(pk=ann.pk).update(is_active=True)
    ann.refresh_from_db()

    new = Token.objects.get().collect(by=ann)

    assert not secrets_in(before)
    assert new.token.prefix not in before
    assert Token.objects.get().is_held_by(new.secret)


@pytest.mark.full
def test_a_waiting_token_is_not_rotated_but_collected(waiting: Token, ann: User, sign_in: SignIn) -> None:
    with pytest.raises(AskedForNew):
        waiting.rotate(by=ann)
    assert problem(Rest.of(ann).post(f"/tokens/{waiting.pk}/rotate")) == (409, "asked_for_new")
    answer = sign_in(ann).post(f"/tokens/{waiting.pk}/regenerate/", headers=ON_LIST)
    assert "Collect the new token." in answer["HX-Trigger"]


def test_the_owner_is_told_on_their_page_and_collects_once(waiting: Token, ann: User, sign_in: SignIn) -> None:
    browser, path = sign_in(ann), f"/tokens/{waiting.pk}/collect/"
    for page in ("/", "/settings/api-tokens"):
        seen = text(browser.get(page))
        assert "boss@example.com asked for a new token in place of your token ci" in seen
        assert path in seen

    asked = browser.get(path, headers=ON_LIST)
    answer = browser.post(path, headers=ON_LIST)
    again = browser.post(path, headers=ON_LIST)

    assert secret_in(asked) is None
    new = secret_in(answer) or ""
    assert Token.objects.get().is_held_by(new)
    assert new[:12] in row(answer, waiting)
    assert f'id="waiting-{waiting.pk}" hx-swap-oob="delete"' in text(answer)
    assert "no-store" in answer["Cache-Control"]
    assert answer["Referrer-Policy"] == "no-referrer"
    assert secret_in(again) is None
    assert "collected before" in again["HX-Trigger"]
    assert path not in text(browser.get("/"))
    hidden = str(dict(browser.session)) + str(list(Event.objects.values())) + text(browser.get("/settings/api-tokens"))
    assert new not in hidden
    events = Event.objects.filter(action__in=["token.asked_for_new", "token.collected"]).order_by("pk")
    assert [(event.action, event.actor_email) for event in events] == [
        ("token.asked_for_new", "boss@example.com"),
        ("token.collected", ann.email),
    ]
    assert events[0].changes["note"] == "acted on another person's token"


@pytest.mark.full
def test_the_owner_collects_by_rest_and_by_a_key_that_may_make_tokens(waiting: Token, ann: User, boss: User) -> None:
    path = f"/tokens/{waiting.pk}/collect"
    answer = Rest.of(ann).post(path)
    assert (answer.status_code, list(answer.json())) == (200, EIGHT)
    assert answer["Cache-Control"] == "no-store"
    assert problem(Rest.of(ann).post(path)) == (409, "nothing_to_collect")

    own = make.token(a_connection(boss)).token
    own.ask_for_new(by=boss)
    reading = make.api_key(boss, Capability.MCP_CONNECTIONS_REVOKE).secret
    making = make.api_key(boss, Capability.API_TOKENS_MANAGE).secret
    assert Rest.bearing(reading).post(f"/tokens/{own.pk}/collect").json()["capability"] == "api-tokens:manage"
    assert Rest.bearing(making).post(f"/tokens/{own.pk}/collect").status_code == 200


def test_nothing_is_collected_behind_the_break_glass_or_after_the_end(
    waiting: Token, ann: User, boss: User, sign_in: SignIn
) -> None:
    """Collecting fails while the gateway is disabled or blocks the agent, and once the token is expired or revoked."""
    path, browser = f"/tokens/{waiting.pk}/collect", sign_in(ann)
    link = waiting.connection
    here = HostAtGateway.objects.at(link.gateway, link.host)
    for stop, start in ((link.gateway.disable, link.gateway.enable), (here.block, here.reset)):
        stop(by=boss)
        assert f"{path}/" not in text(browser.get("/settings/api-tokens"))
        assert problem(Rest.of(ann).post(path)) == (403, "disabled")
        for answer in (browser.get(f"{path}/"), browser.post(f"{path}/", headers=ON_LIST)):
            assert (answer.status_code, secrets_in(text(answer))) == (403, set())
        start(by=boss)
    Token.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert problem(Rest.of(ann).post(path)) == (409, "token_expired")
    Token.objects.update(expires_at=None)
    waiting.revoke(by=boss)
    assert problem(Rest.of(ann).post(path)) == (409, "token_revoked")
    assert "This token is already revoked." in browser.post(f"{path}/", headers=ON_LIST)["HX-Trigger"]
    assert not Event.objects.filter(action="token.collected").exists()


@pytest.mark.full
def test_nobody_is_asked_to_collect_what_has_ended(issued: Issued, boss: User, sign_in: SignIn) -> None:
    browser, path = sign_in(boss), f"/tokens/{issued.token.pk}/ask-for-new/"

    Token.objects.update(expires_at=timezone.now())
    assert "This token has expired. Create a new one." in browser.post(path, headers=ON_LIST)["HX-Trigger"]
    Token.objects.update(expires_at=None)
    issued.token.revoke(by=boss)
    assert "This token is already revoked." in browser.post(path, headers=ON_LIST)["HX-Trigger"]

    assert Token.objects.get().asked_at is None
    assert not mail.outbox


@pytest.mark.full
def test_the_key_of_an_app_is_collected_by_nobody(ann: User, boss: User) -> None:
    key = Token.objects.get(connection=make.app_connection(ann, make.gateway()))

    with pytest.raises(TokenError, match="The key of an app's connection can only be regenerated"):
        key.ask_for_new(by=boss)

    assert Token.objects.get() == key
    assert Token.objects.get().digest is not None


@pytest.mark.full
def test_a_token_that_was_asked_for_anew_renews_itself_no_more(issued: Issued, boss: User) -> None:
    """A thief who rotates the token with the old secret at the same moment gets no new secret."""
    as_found = Token.objects.get()
    issued.token.ask_for_new(by=boss)

    with pytest.raises(Superseded):
        as_found.rotate(by=None, presented=issued.secret)

    assert problem(Rest.bearing(issued.secret).post(f"/tokens/{as_found.pk}/rotate")) == (401, "unauthorized")
    assert Token.objects.get().status == "waiting"


@pytest.mark.full
def test_the_owner_is_mailed_without_a_secret_and_without_a_mail_server_the_old_one_ends_all_the_same(
    issued: Issued,
    boss: User,
    ann: User,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
    django_capture_on_commit_callbacks: Any,
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        issued.token.ask_for_new(by=boss)
    (sent,) = mail.outbox
    assert sent.to == [ann.email]
    assert "/settings/api-tokens" in sent.body
    assert "boss@example.com" in sent.body
    assert not secrets_in(str(sent.body))

    options = {"host": "127.0.0.1", "port": 1, "timeout": 1}
    settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend", "OPTIONS": options}}
    other = make.token(issued.token.connection).token
    with django_capture_on_commit_callbacks(execute=True):
        assert Rest.of(boss).post(f"/tokens/{other.pk}/ask-for-new").status_code == 200
    assert Token.objects.get(pk=other.pk).status == "waiting"
    assert "mail not sent" in caplog.text


# --- Nobody else's eyes -----------------------------------------------------------------------------------------------

PK = re.compile(r"<uuid:(?:pk|object_id)>|<path:object_id>")


def addresses(token: Token) -> list[str]:
    """Return every URL that contains the id of the token or of its connection."""
    paths = {f"/{route.pattern}" for name, route in routes() if not name.startswith("api:")}
    paths |= {f"/api/{str(route.pattern).lstrip('/')}" for route in api_urls}
    named = [re.sub(r"[\^$]|\\Z", "", path) for path in paths if PK.search(path)]
    things = {"/tokens": token.pk, "/connections": token.connection_id}
    return [PK.sub(str(pk), path) for path in named for kind, pk in things.items() if f"{kind}/<" in path]


@pytest.mark.full
@pytest.mark.parametrize("state", ["waiting", "overlapping"])
def test_no_address_tells_an_administrator_a_secret_of_another(
    state: str, issued: Issued, boss: User, ann: User
) -> None:
    if state == "waiting":
        issued.token.ask_for_new(by=boss)
    else:
        issued.token.rotate(by=ann, overlap_hours=168)
    User.objects.filter(pk=boss.pk).update(is_staff=True)
    rest, key = Rest.of(boss), Rest.bearing(make.api_key(boss, *Capability).secret)
    body, knocked = {"overlap_hours": 24, "generation": 1, "sure": "yes"}, 0
    for path in addresses(issued.token):
        before = Token.objects.values().get()
        answers = [rest.client.get(path), rest.client.post(path, body, headers=HTMX)]
        if path.startswith("/api/"):
            bodies: list[Any] = [None, {"overlap_hours": 24}]
            answers = [by.post(path.removeprefix("/api"), told) for by in (rest, key) for told in bodies]
        for answer in answers:
            knocked += 1
            assert not secrets_in(answer.content.decode()), path
        Token.objects.update(**{name: value for name, value in before.items() if name != "id"})
        Connection.objects.update(revoked_at=None, revoke_reason="", revoked_by=None, enabled=True)
    assert knocked > 40
    assert not Event.objects.filter(action="token.collected").exists()
    assert Event.objects.filter(action="token.rotated").count() == (state == "overlapping")


@pytest.mark.full
def test_a_stranger_is_asked_to_sign_in(waiting: Token) -> None:
    for act in ("collect", "ask-for-new", "end-previous"):
        assert Client().post(f"/tokens/{waiting.pk}/{act}/")["Location"].startswith("/accounts/login/")
        assert Rest.of().post(f"/tokens/{waiting.pk}/{act}").status_code == 401


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_two_collects_at_once_give_one_secret(waiting: Token, ann: User) -> None:
    for _ in range(5):
        sql("UPDATE tokens_token SET digest = NULL, asked_at = now()")
        together = Barrier(2)

        def run(together: Barrier = together) -> str | None:
            token = Token.objects.get(pk=waiting.pk)
            together.wait(timeout=60)
            try:
                return token.collect(by=ann).secret
            except NothingToCollect:
                return None
            finally:
                connections.close_all()

        with ThreadPoolExecutor(2) as pool:
            got = {one.result() for one in [pool.submit(run), pool.submit(run)]}

        assert len(got) == 2
        assert None in got
        assert Token.objects.get().is_held_by(next(filter(None, got)))
