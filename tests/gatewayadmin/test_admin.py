"""The Django admin: visibility by role, and actions that use the models' methods."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.apps import apps
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from oauth2_provider.models import Application, Grant

from access.models.rules import SEES
from accounts.models import ApiKey, Role, Team, User
from auditlog.models import Call, Event
from capabilities import Capability
from connections.models import Connection, HostAtGateway
from gatewayadmin.admin.base import site
from gateways.models import AccessRequest, Feature, GatewayGrant, ToolGrant, ToolSet
from hosts.models import Host, HostKind
from oauth.models import AuthorizeRequest, Binding, Registration
from proxy.models import RateCounter
from rules.models import Rule, RuleMode
from scim.models import ProvisioningKey
from servers.models import AuthType, Identity, Server
from servers.oauth_client import models as upstream_oauth
from sinks.models import ArchivedPartition, Sink
from sso.models import Account, Provider
from tests import make
from tests.accounts.again import confirmed
from tests.cases import sampled
from tests.conftest import SignIn
from tests.docs.pages import ROOT
from tokens.models import Token

pytestmark = pytest.mark.django_db

# Models shown on the page of their parent object.
BELOW = {"connections.connectionidentity", "tokens.tokenscope", "accounts.attempt"}
BELOW |= {"access.reviewline"}  # Shown and exported on the page of its review.
BELOW |= {"ui.keptanswer"}  # Encrypted answers of the REST API, kept for requests sent twice.
BELOW |= {"configuration.managedobject"}  # Which file declares an object: shown on the page of the object.
BELOW |= {"attention.notification"}  # Messages to people.
BELOW |= {"access.fact"}  # The history behind the access report.
BELOW |= {"accounts.schemaversion"}  # Two version numbers, read at the next start.
BELOW |= {"gateways.featureversion", "gateways.listing", "upstream_oauth.grant"}
BELOW |= {"scim.directoryperson", "scim.directoryteam"}  # Ids and names that directories give people and teams.
BELOW |= {"sso.rulerow"}  # On the settings page.
BELOW |= {"sso.receivedassertion"}  # Digests and encrypted data, stored for 15 minutes.
BELOW |= {"sso.decryptionkey"}  # Our encrypted keys; the settings page shows the certificate.
BELOW |= {"auditlog.rollup", "auditlog.rollupstate"}  # Call counts, which have their own page.
BELOW |= {"auditlog.checkpoint", "auditlog.checkpointkey"}  # Signatures and a sealed key; `verify_log` reads them.
# The proxy's state between requests: digests of ids and encrypted data, which staff can neither read nor edit.
BELOW |= {f"proxy.{name}" for name in ("session", "upstreamsession", "serverinfo", "cancellation")}
BELOW |= {f"proxy.{name}" for name in ("pendingrequest", "streamevent", "suspendedcall")}
SECRET = re.compile(r"digest|ciphertext|password$|_payload$|^message$|parameters|code|fingerprint|secret|key_id|dedupe")
PLANTED = "planted-upstream-secret-0123456789"

MOST_STATEMENTS = 7  # Two are for the session and its user, and one for the role's capabilities.


@dataclass
class World:
    """Some of the objects that `world` created, and the secrets that no page may show."""

    host: Host
    token: Token
    identity: Identity
    secrets: list[str]


def world(by: User) -> World:
    """Create a new object of each kind that can be created by hand; return some of them, and the secrets."""
    server = make.server(by=by, auth_type=AuthType.BEARER)
    identity = make.identity(server, secret=PLANTED)
    gateway = make.gateway(by=by)
    assignment = make.assignment(gateway, server, identity_scheme="shared", shared_identity=identity)
    Feature.objects.create(assignment=assignment, name="search", exposed_name=make.unique("tool"))
    host = make.agent(by=by)
    link = make.connection(host, gateway, make.user())
    HostAtGateway.objects.at(gateway, host).allow(by=by)
    ToolGrant.objects.give(ToolSet.objects.add(gateway=gateway, name=make.unique("set"), by=by), by=by)
    GatewayGrant.objects.give(gateway, by, by=by)
    AccessRequest.objects.create(gateway=gateway, user=by, reason="For work", days=7)
    issued = make.token(link, servers=[assignment])
    Team.objects.create(name=make.unique("team")).users.add(by)
    key = ApiKey.objects.create(
        user=by,
        name=make.unique("key"),
        prefix="gwp_abcdefgh",
        digest=make.unique("d").encode(),
        expires_at=link.connected_at,
    )
    passing(link)
    Sink.objects.add(name=make.unique("sink"), kind="webhook", address="https://8.8.8.8/", secret=PLANTED, by=by)
    provisioning = ProvisioningKey.objects.issue(name=make.unique("Okta"), role=make.role(), capabilities=[], by=by)
    Provider.edit(by=None, secret=PLANTED)
    Account.objects.create(user=make.user(), issuer="https://id.example.com", subject=make.unique("subject"))
    today = timezone.now().date()
    ArchivedPartition.objects.create(name=make.unique("partition"), begin=today, end=today)
    make.call(host_id=host.pk, host_name=host.name, request_payload={"text": PLANTED})
    digests = [
        bytes(issued.token.digest or b"").hex(),
        bytes(key.digest).hex(),
        bytes(provisioning.key.digest).hex(),
        provisioning.secret,
        bytes(identity.secret_ciphertext or b"").hex(),
    ]
    return World(host, issued.token, identity, [issued.secret, PLANTED, *digests])


def passing(link: Connection) -> None:
    """Create temporary rows, such as flows, OAuth bindings and counters."""
    now = timezone.now()
    app = Application.objects.create(
        name=make.unique("app"), client_type="public", authorization_grant_type="authorization-code"
    )
    Registration.objects.create(application=app, host=link.host, client_name=app.name)
    AuthorizeRequest.objects.create(
        kind="token", host=link.host, user=link.user, gateway=link.gateway, browser_digest=b"x" * 32, expires_at=now
    )
    grant = Grant.objects.create(application=app, user=link.user, code=make.unique(PLANTED), expires=now)
    Binding.objects.create(connection=link, grant=grant)
    RateCounter.objects.create(subject_type="token", subject_id=link.pk, window=now, most=60)
    known = upstream_oauth.ClientRegistration(
        issuer=f"https://{app.name}.example.com", kind="dynamic", auth_method="none"
    )
    known.seal(PLANTED)
    known.save()
    upstream_oauth.SignIn.objects.create(
        state_digest=make.unique("s").encode(),
        browser_digest=b"x" * 32,
        user=link.user,
        server=Server.objects.latest("created_at"),
        registration=known,
        verifier_ciphertext=PLANTED.encode(),
        endpoints={"token_endpoint": PLANTED},
        expires_at=now,
    )


@pytest.fixture
def boss(sign_in: SignIn) -> Client:
    return sign_in(make.user(*Capability, is_staff=True))


def staff(sign_in: SignIn, *capabilities: Capability) -> Client:
    return sign_in(make.user(*capabilities, is_staff=True))


def user_of(client: Client) -> User:
    return User.objects.get(pk=client.session["_auth_user_id"])


def listing(model: str) -> str:
    return reverse(f"admin:{model.replace('.', '_')}_changelist")


def act(client: Client, name: str, *rows: models.Model, sure: bool = True) -> Any:
    chosen = {"action": name, ACTION_CHECKBOX_NAME: [str(row.pk) for row in rows]}
    return client.post(listing(rows[0]._meta.label_lower), chosen | ({"sure": "yes"} if sure else {}), follow=True)


def registered() -> dict[str, Any]:
    return {model._meta.label_lower: pages for model, pages in site._registry.items()}


def test_every_model_of_ours_is_there_and_nobody_elses() -> None:
    apps_of_ours = [app for app in apps.get_app_configs() if app.path.removeprefix(f"{ROOT}/").count("/") < 2]
    ours = {model._meta.label_lower for app in apps_of_ours for model in app.get_models()}

    assert set(registered()) == ours - BELOW


def test_no_page_is_made_of_a_secret() -> None:
    for name, pages in registered().items():
        shown = {*pages.list_display, *(pages.fields or ()), *pages.readonly_fields, *pages.search_fields}
        binary = {field.name for field in pages.model._meta.get_fields() if isinstance(field, models.BinaryField)}
        assert not {one for one in shown if SECRET.search(one)} | (shown & binary), name
        assert pages.fields or name in {"auditlog.call", "auditlog.event"}, name


@pytest.mark.parametrize("step", sampled(6))
def test_no_page_shows_a_secret(boss: Client, step: int) -> None:
    secrets = world(user_of(boss)).secrets
    seen = ""
    found = registered()
    for name in {"tokens.token", *[*found][::step]}:
        pages = found[name]
        seen += boss.get(listing(name)).text
        if name not in {"auditlog.call", "auditlog.event"}:
            for row in pages.model._default_manager.all()[:1]:
                page = boss.get(reverse(f"admin:{name.replace('.', '_')}_change", args=[row.pk]))
                assert page.status_code == 200, name
                seen += page.text

    assert Token.objects.get().prefix in seen
    assert not [secret for secret in secrets if secret in seen]


@pytest.mark.full
def test_a_list_takes_few_statements_and_no_more_with_more_rows(boss: Client) -> None:
    taken: list[dict[str, int]] = []
    for rows in (1, 3):
        for _ in range(rows):
            world(user_of(boss))
        counts = {}
        for name in registered():
            with CaptureQueriesContext(connection) as queries:
                assert boss.get(listing(name)).status_code == 200
            counts[name] = len(queries)
            if name.startswith("auditlog."):
                assert not [one["sql"] for one in queries if "COUNT(" in one["sql"]]
        taken.append(counts)

    assert taken[0] == taken[1]
    assert max(taken[0].values()) <= MOST_STATEMENTS


@pytest.mark.full
def test_a_list_is_narrowed_by_what_it_shows_only(boss: Client, subtests: pytest.Subtests) -> None:
    """Filters on hidden columns would let a viewer guess the hidden values letter by letter."""
    world(user_of(boss))

    for model, lookup in (
        ("accounts.user", "password__startswith=argon2"),
        ("accounts.user", "groups__name=x"),
        ("accounts.apikey", "digest__gt=a"),
        ("accounts.team", "users__password__startswith=argon2"),
        ("tokens.token", "connection__user__password__startswith=argon2"),
        ("servers.identity", "secret_ciphertext__isnull=False"),
        ("auditlog.call", "request_payload__text__startswith=planted"),
        ("auditlog.event", "changes__icontains=x"),
        ("oauth.authorizerequest", "application__client_secret__startswith=x"),
        ("oauth.binding", "grant__code__startswith=planted"),
        ("accounts.user", "email__regex=((("),
        ("accounts.user", "email__exact=%00"),
    ):
        with subtests.test(f"{model}: {lookup}"):
            assert boss.get(f"{listing(model)}?{lookup}").status_code == 400
    assert boss.get(f"{listing('accounts.user')}?email__startswith=a").status_code == 200


@pytest.mark.full
def test_every_filter_that_is_offered_works(boss: Client, subtests: pytest.Subtests) -> None:
    world(user_of(boss))

    for model in registered():
        with subtests.test(model):
            page = boss.get(listing(model)).content.decode()
            offered = {html.unescape(link) for link in re.findall(r'href="(\?[^"]*__[^"]*)"', page)}
            assert [link for link in offered if boss.get(listing(model) + link).status_code != 200] == []


@pytest.mark.full
def test_staff_see_the_models_that_their_capabilities_open_and_no_other(sign_in: SignIn) -> None:
    def opened(client: Client) -> set[str]:
        return {name for name in registered() if client.get(listing(name)).status_code == 200}

    client = staff(sign_in)
    assert "have permission to view or edit anything" in client.get("/admin/").text
    assert opened(client) == set()
    assert opened(staff(sign_in, Capability.LOGS_READ)) == {"auditlog.call", "accounts.savedview"}
    assert "access.review" not in opened(staff(sign_in, Capability.PEOPLE_MANAGE))
    assert "access.review" in opened(staff(sign_in, *SEES))


@pytest.mark.full
def test_reading_offers_no_action_and_takes_none(sign_in: SignIn) -> None:
    client = staff(sign_in, Capability.HOSTS_READ)
    host = make.agent(by=make.user())

    assert "Disable selected" not in client.get(listing("hosts.host")).text
    act(client, "disable", host)

    host.refresh_from_db()
    assert host.enabled


def test_an_action_says_what_it_cuts_before_it_acts_and_whether_it_was_done(boss: Client) -> None:
    host = world(user_of(boss)).host

    assert "Disable it first" in act(boss, "archive", host).text
    asked = act(boss, "disable", host, sure=False)

    assert "Cuts off 1 app or agent, 1 person." in asked.text
    host.refresh_from_db()
    assert (host.enabled, host.archived_at) == (True, None)

    act(boss, "disable", host)
    host.refresh_from_db()
    assert not host.enabled
    event = Event.objects.filter(action="host.disabled").get()
    assert (event.via, event.actor_id, event.target_id) == ("django_admin", user_of(boss).pk, str(host.pk))
    confirmed(boss)
    assert "“End staff” was done for 1 user." in act(boss, "end_staff", make.user(is_staff=True)).text


def test_a_test_that_fails_is_said_to_have_failed(boss: Client) -> None:
    confirmed(boss)
    Provider.edit(by=None)
    # An address that the test never connects to.
    Provider.objects.update(name="Example", issuer="https://127.0.0.1:9", client_id="gateway")

    told = act(boss, "test", Provider.objects.get()).text

    assert Event.objects.get(action="organisation.tested").changes["works"] is False
    assert 'class="error"' in told
    assert "was done for" not in told


@pytest.mark.full
def test_every_action_records_one_event_here_or_in_the_table_of_verbs(boss: Client) -> None:
    table = (ROOT / "tests" / "house" / "verbs.py").read_text()
    tried = {(model.replace("/", "."), name) for model, name in re.findall(r'admin\("([a-z_/]+)", "(\w+)"', table)}
    confirmed(boss)
    world(user_of(boss))
    Role.objects.make_built_in()
    breaker, chief = make.user(), Role.objects.get(name="Super admin")
    User.objects.filter(pk__in=(breaker.pk, user_of(boss).pk)).update(role=chief)
    Authenticator.objects.create(user=breaker, type=Authenticator.Type.TOTP, data={})
    # An address that the test never connects to.
    Provider.objects.update(mode="offered", name="Example", issuer="https://127.0.0.1:9", client_id="gateway")
    provider = Provider.objects.get()
    here: dict[tuple[str, str], models.Model] = {
        ("accounts.apikey", "revoke"): ApiKey.objects.get(),
        ("accounts.user", "make_break_glass"): breaker,
        ("sinks.sink", "test"): Sink.objects.get(),
        ("sso.provider", "test"): provider,
        ("sso.provider", "switch_off"): provider,
        ("rules.rule", "watch"): Rule.objects.add(name="Made", effect="refuse", mode=RuleMode.ON, by=None),
    }

    for (_, name), row in here.items():
        before = Event.objects.count()
        act(boss, name, row)
        assert Event.objects.count() == before + 1, name
    assert {(name, one.name) for name, pages in registered().items() for one in pages.acts} == tried | set(here)


@pytest.mark.full
def test_a_shared_identity_takes_the_capability_of_its_server(sign_in: SignIn) -> None:
    client = staff(sign_in, Capability.IDENTITIES_MANAGE)
    identity = make.identity(make.server(auth_type=AuthType.BEARER))

    told = act(client, "revoke", identity)

    assert "servers:manage" in told.text
    identity.refresh_from_db()
    assert identity.revoked_at is None


@pytest.mark.full
def test_a_form_records_each_change_and_says_what_is_wrong(boss: Client) -> None:
    host = make.agent(by=make.user())
    page = reverse("admin:hosts_host_change", args=[host.pk])

    boss.post(page, {"name": "Night shift", "description": "", "allow_enrolment": "on"})

    events = Event.objects.filter(action="host.updated", via="django_admin")
    assert [sorted(one.changes) for one in events.order_by("pk")] == [["allow_enrolment"], ["name"]]
    make.agent(by=make.user(), name="Day shift")
    assert "already exists" in boss.post(page, {"name": "day shift", "description": ""}, follow=True).text
    boss.post(reverse("admin:hosts_host_add"), {"name": "New one", "description": ""}, follow=True)
    assert Host.objects.get(name="New one").created_by == user_of(boss)


@pytest.mark.full
def test_teams_of_who_holds_more_are_refused_in_words(boss: Client) -> None:
    officer = user_of(boss)
    clerk = make.user(Capability.PEOPLE_MANAGE, is_staff=True)
    peers, mixed = Team.objects.create(name="Peers"), Team.objects.create(name="Mixed")
    mixed.users.add(officer)
    client = Client()
    client.force_login(clerk)
    acts: list[tuple[str, dict[str, Any]]] = [
        (reverse("admin:accounts_team_add"), {"name": "Made", "users": [str(officer.pk)]}),
        (reverse("admin:accounts_team_change", args=[peers.pk]), {"name": "Peers", "users": [str(officer.pk)]}),
        (reverse("admin:accounts_team_change", args=[mixed.pk]), {"name": "Mixed", "users": []}),
        (reverse("admin:accounts_team_delete", args=[mixed.pk]), {"post": "yes"}),
    ]

    for path, values in acts:
        refused = client.post(path, values, follow=True)
        assert "You need all capabilities of the person, role, team or API key that you change." in refused.text, path

    assert {team.name: team.emails() for team in Team.objects.all()} == {"Peers": [], "Mixed": [officer.email]}
    client.post(reverse("admin:accounts_team_change", args=[peers.pk]), {"name": "Peers", "users": [str(clerk.pk)]})
    assert peers.emails() == [clerk.email], "oneself may join"


@pytest.mark.full
def test_nothing_else_can_be_added_changed_or_deleted(boss: Client) -> None:
    world(user_of(boss))
    open_forms = {"hosts.host", "accounts.team"}
    for name, pages in registered().items():
        path = name.replace(".", "_")
        if name not in open_forms:
            assert boss.get(reverse(f"admin:{path}_add")).status_code == 403, name
        for row in pages.model._default_manager.all()[:1]:
            if name != "accounts.team":
                assert boss.post(reverse(f"admin:{path}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    assert Call.objects.count() == 1


@pytest.mark.full
def test_ended_tokens_and_apps_have_no_form(boss: Client) -> None:
    made = world(user_of(boss))
    page = reverse("admin:tokens_token_change", args=[made.token.pk])
    assert 'name="_save"' in boss.get(page).text

    made.token.revoke(by=None)

    assert 'name="_save"' not in boss.get(page).text
    assert boss.post(page, {"name": "back again"}).status_code == 403
    app = make.app()
    assert app.kind == HostKind.HEADED
    assert 'name="_save"' not in boss.get(reverse("admin:hosts_host_change", args=[app.pk])).text


@pytest.mark.full
def test_the_log_is_read_by_cursor_searched_by_what_has_an_index_and_has_no_form(boss: Client) -> None:
    for number in range(51):
        make.call(method=f"m{number}")

    newest = boss.get(listing("auditlog.call"))
    older = re.search(r'href="(\?[^"]*at=[^"]*)" rel="next"', newest.text)
    assert older is not None
    assert ("m50<" in newest.text, "m0<" in newest.text) == (True, False)
    second = boss.get(listing("auditlog.call") + older[1]).text
    assert ("m0<" in second, "m1<" in second, 'rel="prev"' in second) == (True, False, True)
    assert boss.get(listing("auditlog.call") + "?at=nonsense").status_code == 200
    assert boss.get(reverse("admin:auditlog_call_change", args=[Call.objects.all()[0].pk])).status_code == 404

    host = world(user_of(boss)).host
    other = make.call(host_name="another")
    for term, wanted in ((host.name, host.name), (str(other.correlation_id), "another")):
        found = boss.get(listing("auditlog.call"), {"q": term}).text
        assert wanted in found
        assert ("another" in found) == (wanted == "another")


@pytest.mark.full
def test_the_history_of_a_row_is_its_admin_events(boss: Client) -> None:
    host = make.agent(by=make.user())

    page = boss.get(reverse("admin:hosts_host_history", args=[host.pk]), follow=True)

    assert page.redirect_chain[0][0].startswith("/settings/admin-events/")
    assert "host.created" in page.text
    assert "historylink" in boss.get(reverse("admin:hosts_host_change", args=[host.pk])).text


def test_the_links_of_a_row_open(sign_in: SignIn) -> None:
    link = make.connection(make.agent(by=make.user()), make.gateway(), make.user())
    client = staff(sign_in, Capability.MCP_CONNECTIONS_READ)

    page = client.get(reverse("admin:connections_connection_change", args=[link.pk])).text
    (place,) = re.findall(r'<a href="([^"]+)" class="viewsitelink"', page)

    assert client.get(html.unescape(place)).status_code == 200
    assert "historylink" not in page


def test_signing_out_goes_through_the_one_sign_out(boss: Client) -> None:
    boss.post("/admin/logout/")

    assert "_auth_user_id" not in boss.session
