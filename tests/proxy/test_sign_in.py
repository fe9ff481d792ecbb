"""Sign-in at a server's issuer, and calls with its token, with a real issuer, browser session and proxy."""

import html
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import pytest
from django.db import connections
from django.test import Client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from accounts.models import User, WorkspaceSettings
from auditlog.models import Call, Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway, IdentityScheme
from proxy.refresh import NotRenewed
from servers.models import AuthType, Identity, Server
from servers.oauth_client.models import Grant, SignIn
from servers.oauth_client.registration import keep_fresh, redirect_uri, refresh_identity
from tests import make
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.issuers import Issuer, consent, destination, query
from tests.oauth.apps import browser
from tests.proxy.conftest import Agent, Proxy, Start, eventually, sql
from ui.sealing import cipher

pytestmark = pytest.mark.usefixtures("loopback_is_allowed")

NEXT = "/settings/identities"


@dataclass
class Github:
    """The server `github` of the gateway `work`, protected by `issuer`, with per-user identities."""

    issuer: Issuer
    upstream: Upstream
    server: Server
    gateway: Gateway
    proxy: Proxy

    def connection(self, person: User) -> Connection:
        return make.connection(make.agent(by=person), self.gateway, person)

    def begin(self, client: Client, path: str = "", **fields: Any) -> str:
        """Return the authorization URL at the issuer."""
        response = client.post(path or f"/servers/{self.server.slug}/authenticate/", {"next": NEXT, **fields})
        return destination(response)

    def sign_in(self, person: User, path: str = "", **fields: Any) -> Identity:
        """Sign this person in, and return the identity."""
        client = browser(person)
        response = client.get(consent(self.begin(client, path, **fields)))
        assert (response.status_code, response.headers.get("Location")) == (302, NEXT), response.content.decode()
        return Identity.objects.own(person).order_by("-updated_at")[0]

    def agent(self, person: User) -> Agent:
        return self.proxy.agent(self.connection(person))


@pytest.fixture
def github(issuer: Issuer, proxy: Proxy, run: Run) -> Github:
    upstream = run(issuer.app())
    server = make.server(slug="github", name="GitHub", url=upstream.url, auth_type=AuthType.OAUTH)
    gateway = make.gateway(slug="work")
    make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
    return Github(issuer, upstream, server, gateway, proxy)


def said(response: Any) -> str:
    """Return the text of a tool's result."""
    return str(response.json()["result"]["content"][0]["text"])


def error(response: Any) -> dict[str, Any]:
    assert response.status_code == 200
    found: dict[str, Any] = response.json()["error"]
    return found


def expire(identity: Identity) -> None:
    """Change the identity's row as if its token had expired."""
    sql(
        "UPDATE servers_identity SET expires_at = now() - interval '1 s', renew_at = now() WHERE id = %s",
        identity.pk,
    )


def access_of(identity: Identity) -> str:
    identity.refresh_from_db()
    return cipher().open(bytes(identity.secret_ciphertext or b""))


@pytest.mark.full
def test_a_person_signs_in_and_calls_carry_the_token(github: Github, ann: User) -> None:
    agent = github.agent(ann)
    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_missing"

    identity = github.sign_in(ann)

    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"
    assert (identity.issuer, identity.kind) == (github.upstream.url.removesuffix("/mcp"), "oauth")
    assert not SignIn.objects.exists()
    assert Event.objects.get(action="identity.created").changes["issuer"] == [None, identity.issuer]


@pytest.mark.full
def test_an_authorization_request_is_bound_to_this_server_and_a_fresh_proof(github: Github, ann: User) -> None:
    asked = query(github.begin(browser(ann)))

    assert asked["resource"] == github.upstream.url
    assert asked["code_challenge_method"] == "S256"
    assert re.search(r"/upstream-oauth/callback/[0-9a-f]{32}/$", asked["redirect_uri"])
    assert asked["response_type"] == "code"
    sealed = SignIn.objects.get()
    assert asked["state"].encode() != bytes(sealed.state_digest)


@pytest.mark.full
def test_a_token_that_has_ended_is_renewed_before_the_server_is_asked_outside_of_calls(
    github: Github, ann: User
) -> None:
    identity = github.sign_in(ann)
    before = access_of(identity)
    expire(identity)
    identity.refresh_from_db()

    keep_fresh(identity)

    assert access_of(identity) != before
    assert github.issuer.refreshes == 1


@pytest.mark.full
def test_refreshing_tools_renews_a_token_that_has_ended_and_does_not_mark_it_as_refused(github: Github) -> None:
    boss = make.user(*Capability, email="boss@example.com")
    identity = github.sign_in(boss)
    del github.issuer.access[access_of(identity)]
    expire(identity)

    page = browser(boss).post("/gateways/work/tools/refresh/", follow=True).content.decode()

    assert "refused the credential" not in page
    identity.refresh_from_db()
    assert (identity.status, github.issuer.refreshes) == ("active", 1)


@pytest.mark.full
def test_a_token_that_is_about_to_end_is_renewed_beside_the_call(github: Github, ann: User) -> None:
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    sql("UPDATE servers_identity SET renew_at = now() - interval '1 s' WHERE id = %s", identity.pk)

    assert "Bearer" in said(agent.call("github__whoami"))

    eventually(lambda: Grant.objects.get(identity=identity).refreshed_at is not None)
    assert github.issuer.refreshes == 1


@pytest.mark.full
def test_a_token_that_is_refused_is_renewed_for_the_next_call_and_the_refused_one_not_repeated(
    github: Github, ann: User
) -> None:
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    assert "Bearer" in said(agent.call("github__whoami"))
    del github.issuer.access[access_of(identity)]

    refused = error(agent.call("github__whoami"))

    assert (refused["data"]["reason"], "renewed" in refused["message"]) == ("credential_refused", True)
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"
    assert github.issuer.refreshes == 1


def test_ten_calls_over_two_workers_renew_an_ended_token_once(github: Github, start: Start, ann: User) -> None:
    second = start()
    connection = github.connection(ann)
    identity = github.sign_in(ann)
    issued = make.token(connection)
    agents = [github.proxy.holding(issued), second.holding(issued)]
    assert "Bearer" in said(agents[0].call("github__whoami"))
    del github.issuer.access[access_of(identity)]
    expire(identity)
    github.issuer.slow = 0.5

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: agents[n % 2].call("github__whoami"), range(10)))

    assert {said(answer) for answer in answers} == {f"Bearer {access_of(identity)}"}
    assert github.issuer.refreshes == 1


@pytest.mark.full
def test_a_refused_renewal_ends_one_person_s_sign_in_and_nobody_else_s(github: Github, ann: User, ben: User) -> None:
    ann_s, ben_s = github.agent(ann), github.agent(ben)
    identity, other = github.sign_in(ann), github.sign_in(ben)
    expire(identity)
    github.issuer.refusal = "invalid_grant"

    refusal = error(ann_s.call("github__whoami"))

    assert refusal["data"]["reason"] == "identity_sign_in"
    connection, place = identity.connection_identities.values_list("connection_id", "assignment_id").get()
    assert refusal["data"]["url"].endswith(f"/settings/identities?connection={connection}#carried-{connection}-{place}")
    identity.refresh_from_db()
    assert (identity.status, identity.sign_in_reason) == ("sign_in_needed", "refused")
    assert Grant.objects.get(identity=identity).refresh_ciphertext is None
    event = Event.objects.get(action="identity.sign_in_needed")
    assert event.changes["issuer"] == [None, identity.issuer]
    assert said(ben_s.call("github__whoami")) == f"Bearer {access_of(other)}"
    assert error(ann_s.call("github__whoami"))["data"]["reason"] == "identity_sign_in"
    assert github.issuer.refreshes == 1, "a dead grant was tried again"


@pytest.mark.full
def test_a_page_holds_no_connection_while_another_process_renews(
    github: Github, ann: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = github.sign_in(ann)
    expire(identity)
    sql("UPDATE upstream_oauth_grant SET lease = gen_random_uuid(), leased_until = now() + interval '1 hour'")
    page, held = connections["default"], list[bool]()

    def rest(_: float) -> None:
        held.append(page.connection is not None)
        sql("UPDATE upstream_oauth_grant SET lease = NULL, leased_until = NULL")

    monkeypatch.setattr("servers.oauth_client.registration.time.sleep", rest)
    refresh_identity(identity)

    assert held == [False]
    assert github.issuer.refreshes == 1


@pytest.mark.full
def test_an_issuer_out_of_order_ends_no_sign_in_and_is_asked_again_later(github: Github, ann: User) -> None:
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    expire(identity)
    github.issuer.broken = 1
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"

    expire(identity)
    github.issuer.broken = 2
    refusal = error(agent.call("github__whoami"))

    assert "cannot be renewed at the moment" in refusal["message"]
    identity.refresh_from_db()
    assert identity.status == "active"
    sql("UPDATE upstream_oauth_grant SET retry_at = NULL")
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"


@pytest.mark.full
def test_a_refresh_token_that_is_not_given_anew_stays_in_use(github: Github, ann: User) -> None:
    github.issuer.repeats_refresh = False
    agent = github.agent(ann)
    identity = github.sign_in(ann)

    for times in (1, 2):
        expire(identity)
        assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"
        assert github.issuer.refreshes == times


@pytest.mark.full
def test_without_anything_to_renew_it_an_ended_token_needs_a_new_sign_in(github: Github, ann: User) -> None:
    github.issuer.gives_refresh = False
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    expire(identity)

    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_sign_in"
    identity.refresh_from_db()
    assert identity.sign_in_reason == "expired"


@pytest.mark.full
def test_a_token_of_unknown_life_is_used_until_it_is_refused(github: Github, ann: User) -> None:
    github.issuer.expires_in = None
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    assert identity.expires_at is None

    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"
    del github.issuer.access[access_of(identity)]
    assert error(agent.call("github__whoami"))["data"]["reason"] == "credential_refused"
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"
    assert github.issuer.refreshes == 1


@pytest.mark.full
def test_a_server_that_refuses_a_fresh_token_needs_a_new_sign_in_and_is_not_asked_in_a_circle(
    github: Github, ann: User
) -> None:
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    assert "Bearer" in said(agent.call("github__whoami"))
    github.issuer.access = _Forgetful()

    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_sign_in"
    identity.refresh_from_db()
    assert identity.sign_in_reason == "token"
    assert github.issuer.refreshes == 1


class _Forgetful(dict[str, Any]):
    """A token store in which no token is found."""

    def get(self, *_: Any) -> None:
        return None


@pytest.mark.full
def test_more_rights_are_asked_for_by_union_and_nothing_goes_in_a_circle(github: Github, ann: User) -> None:
    github.issuer.scopes = ("read",)
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    assert "Bearer" in said(agent.call("github__whoami"))
    github.issuer.needs_scope = "write"

    refusal = error(agent.call("github__whoami"))

    assert refusal["data"]["reason"] == "identity_scope"
    assert github.issuer.refreshes == 0
    identity.refresh_from_db()
    assert identity.status == "active"
    assert identity.sign_in_words == "The server needs more scopes than were granted."
    client = browser(ann)
    assert identity.sign_in_words in client.get("/settings/identities").content.decode()
    github.issuer.needs_scope = ""
    asked = github.begin(client, f"/identities/{identity.pk}/authenticate/")
    assert query(asked)["scope"] == "read write"
    client.get(consent(asked))
    github.issuer.needs_scope = "write"
    assert "Bearer" in said(agent.call("github__whoami"))


# --- Changes while a call waits for a renewal ------------------------------------------------------------------------


def while_renewing(issuer: Issuer, act: Callable[[], object]) -> list[OAuthToken]:
    """Let the issuer run `act` before it answers renewals. Return a list, to which the issued tokens are added."""
    exchange, given = issuer.exchange_refresh_token, []

    def acting() -> None:
        try:
            act()
        finally:
            connections.close_all()

    async def busy(*args: Any) -> OAuthToken:
        given.append(await exchange(*args))
        await anyio.to_thread.run_sync(acting)
        return given[-1]

    issuer.exchange_refresh_token = busy  # type: ignore[method-assign, assignment]
    return given


WAITS: dict[str, Callable[..., object]] = {
    "identity_off": lambda github, identity, ann, boss: Identity.objects.get(pk=identity.pk).disable(by=ann),
    "assignment_disabled": lambda github, identity, ann, boss: github.gateway.assignments.get().disable(by=boss),
    "gateway_disabled": lambda github, identity, ann, boss: github.gateway.disable(by=boss),
    "revoked": lambda github, identity, ann, boss: Connection.objects.get().revoke(by=boss),
}


@pytest.mark.full
@pytest.mark.parametrize(("reason", "ended"), [*((reason, "ended") for reason in WAITS), ("revoked", "refused")])
def test_a_call_that_waited_for_a_renewal_looks_at_the_switches_again(
    reason: str, ended: str, github: Github, ann: User
) -> None:
    boss = make.user(*Capability, email="boss@example.com")
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    assert "Bearer" in said(agent.call("github__whoami"))
    if ended == "ended":
        expire(identity)
    else:
        del github.issuer.access[access_of(identity)]
    while_renewing(github.issuer, lambda: WAITS[reason](github, identity, ann, boss))

    answer = agent.call("github__whoami")

    assert "Bearer" not in answer.text
    row = Call.objects.order_by("-created_at", "-id")[0]
    assert (row.deny_reason, row.outcome in ("denied", "unauthorized")) == (reason, True)
    after = github.issuer.asked[::-1].index("/token")
    assert "/mcp" not in github.issuer.asked[len(github.issuer.asked) - after :]


@pytest.mark.full
def test_tokens_that_come_for_an_identity_revoked_meanwhile_are_revoked_too(github: Github, ann: User) -> None:
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    expire(identity)
    given = while_renewing(github.issuer, lambda: Identity.objects.get(pk=identity.pk).revoke(by=ann))

    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_missing"

    eventually(lambda: {given[0].access_token, given[0].refresh_token} <= set(github.issuer.revoked))


@pytest.mark.full
def test_tokens_of_an_identity_revoked_while_a_page_renewed_it_are_revoked_too(github: Github, ann: User) -> None:
    identity = github.sign_in(ann)
    given = while_renewing(github.issuer, lambda: Identity.objects.get(pk=identity.pk).revoke(by=ann))

    with pytest.raises(NotRenewed) as refused:
        refresh_identity(identity)

    assert refused.value.reason == "identity_missing"
    eventually(lambda: {given[0].access_token, given[0].refresh_token} <= set(github.issuer.revoked))


@pytest.mark.full
def test_an_identity_disabled_during_a_renewal_keeps_the_new_tokens(github: Github, ann: User) -> None:
    identity = github.sign_in(ann)
    given = while_renewing(github.issuer, lambda: Identity.objects.get(pk=identity.pk).disable(by=ann))

    with pytest.raises(NotRenewed) as refused:
        refresh_identity(identity)

    assert refused.value.reason == "identity_off"
    assert access_of(identity) == given[0].access_token


# --- The redirect back -----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_answer_counts_once_and_only_in_the_browser_and_for_the_person_it_was_begun_by(
    github: Github, ann: User, ben: User
) -> None:
    client = browser(ann)
    back = consent(github.begin(client))

    for stranger in (browser(ben), browser(ann)):
        assert stranger.get(back).status_code == 400
    assert client.get(back.replace("state=", "state=x")).status_code == 400
    assert "/token" not in github.issuer.asked
    assert client.get(back).status_code == 302
    assert client.get(back).status_code == 400
    assert Identity.objects.count() == 1


@pytest.mark.full
def test_an_answer_that_comes_too_late_is_refused(github: Github, ann: User) -> None:
    client = browser(ann)
    back = consent(github.begin(client))
    sql("UPDATE upstream_oauth_signin SET expires_at = now()")

    assert "took too long" in client.get(back).content.decode()
    assert "/token" not in github.issuer.asked


def test_an_answer_is_taken_from_the_issuer_that_promised_to_name_itself_and_from_no_other(
    github: Github, ann: User
) -> None:
    github.issuer.metadata = {"authorization_response_iss_parameter_supported": True}
    client = browser(ann)
    for named in ("&iss=https://evil.example.com", ""):
        response = client.get(consent(github.begin(client)) + named)
        assert response.status_code == 400
        assert "another issuer" in response.content.decode()
    assert "/token" not in github.issuer.asked

    own = f"&iss={github.upstream.url.removesuffix('/mcp')}"
    assert client.get(consent(github.begin(client)) + own).status_code == 302


# --- Accounts, shared identities, and the end of a sign-in -----------------------------------------------------------


@pytest.mark.full
def test_a_server_that_names_another_issuer_leads_nobody_there_before_an_administrator(
    github: Github, ann: User, ben: User
) -> None:
    identity = github.sign_in(ann)
    sql("UPDATE servers_identity SET issuer = 'https://was.example.com'")
    path = "/servers/github/authenticate/"

    refused = browser(ben).post(path, {"next": NEXT})

    assert f"GitHub now names another issuer, {identity.issuer}," in html.unescape(refused.content.decode())
    assert "Refresh" not in refused
    boss = make.user(*Capability, email="boss@example.com")
    assert github.sign_in(boss).issuer == identity.issuer
    assert github.sign_in(ben).issuer == identity.issuer


@pytest.mark.full
def test_two_accounts_of_one_person_stand_side_by_side(github: Github, ann: User) -> None:
    first, second = github.connection(ann), github.connection(ann)
    one = github.sign_in(ann, connection=first.pk)
    two = github.sign_in(ann, connection=second.pk)

    assert one != two
    assert one.label != two.label
    assert said(github.proxy.agent(first).call("github__whoami")) == f"Bearer {access_of(one)}"
    assert said(github.proxy.agent(second).call("github__whoami")) == f"Bearer {access_of(two)}"


@pytest.mark.full
def test_cutting_a_person_off_ends_their_sign_ins_at_the_issuers(github: Github, ann: User, ben: User) -> None:
    ana = make.user(*Capability, email="ana@example.com")
    identity, other = github.sign_in(ann), github.sign_in(ben)
    refresh = cipher().open(bytes(Grant.objects.get(identity=identity).refresh_ciphertext or b""))

    Connection.objects.cut_off(ann, by=ana)

    eventually(lambda: refresh in github.issuer.revoked)
    identity.refresh_from_db()
    other.refresh_from_db()
    assert (identity.status, other.status) == ("revoked", "active")


@pytest.mark.full
def test_a_disabled_identity_is_not_renewed(github: Github, ann: User) -> None:
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    expire(identity)
    ana = make.user(*Capability, email="ana@example.com")
    for by, reason in ((ann, "identity_off"), (ana, "identity_disabled")):
        identity.disable(by=by)
        assert error(agent.call("github__whoami"))["data"]["reason"] == reason
        identity.enable(by=by)
    assert github.issuer.refreshes == 0
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"


@pytest.mark.full
def test_a_server_that_moves_ends_the_sign_ins_made_for_where_it_was(github: Github, ann: User) -> None:
    ana = make.user(*Capability, email="ana@example.com")
    agent = github.agent(ann)
    identity = github.sign_in(ann)

    github.server.edit(url=github.upstream.url + "/v2", by=ana)

    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_sign_in"
    identity.refresh_from_db()
    assert (identity.sign_in_reason, identity.secret_ciphertext) == ("moved", None)
    eventually(lambda: github.issuer.revoked)


def test_recorded_calls_hold_no_token_even_one_that_was_renewed_meanwhile(github: Github, ann: User) -> None:
    WorkspaceSettings.load()
    sql("UPDATE accounts_workspacesettings SET record_payloads = true")
    agent = github.agent(ann)
    identity = github.sign_in(ann)
    expire(identity)
    fresh = said(agent.call("github__whoami"))

    recorded = str(Call.objects.order_by("-id")[0].response_payload)

    assert fresh.removeprefix("Bearer ") not in recorded
    assert recorded not in ("", "None")


@pytest.mark.full
def test_an_issuer_that_takes_no_clients_by_itself_gets_the_one_an_administrator_entered(
    github: Github, ann: User
) -> None:
    ana = make.user(*Capability, email="ana@example.com")
    github.issuer.metadata = {"registration_endpoint": None}
    path = "/servers/github/authenticate/"
    page = browser(ann).post(path, {"next": NEXT}).content.decode()
    assert "does not support automatic registration" in page
    assert "/upstream-oauth/callback/" in page
    github.issuer.clients["entered"] = OAuthClientInformationFull.model_validate(
        {
            "client_id": "entered",
            "client_secret": "s3cret-of-ours",
            "redirect_uris": [redirect_uri(github.upstream.url.removesuffix("/mcp"))],
            "token_endpoint_auth_method": "client_secret_post",
        }
    )

    client = {"client_id": "entered", "secret": "s3cret-of-ours", "issuer": github.upstream.url.removesuffix("/mcp")}
    entered = browser(ana).post("/servers/github/client/", client)

    assert entered.status_code == 302
    identity = github.sign_in(ann)
    assert Grant.objects.get(identity=identity).registration.kind == "manual"
    assert "s3cret-of-ours" not in browser(ana).get("/servers/github/client/").content.decode()


@pytest.mark.full
def test_a_shared_identity_is_made_by_an_administrator_who_signs_in(github: Github) -> None:
    ana = make.user(*Capability, email="ana@example.com")
    client = browser(ana)
    leads = destination(client.post("/servers/github/identities/add/", {"label": "service"}))

    assert client.get(consent(leads)).status_code == 302

    identity = Identity.objects.get()
    assert (identity.owner, identity.label, identity.by_oauth) == (None, "service", True)
    member = make.user(email="max@example.com")
    assert browser(member).post(f"/identities/{identity.pk}/authenticate/").status_code == 403
