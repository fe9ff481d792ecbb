"""At least one object of each kind in the API. `World.owner` owns most of those that have an owner."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.utils import timezone

from access.models import Review
from accounts.models import ApiKey, Role, SavedView, Team, User, permissions_of
from approvals.models import Allowance, AllowFor
from attention.models import Channel
from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability
from connections.models import HostAtGateway
from directory.models import DirectoryAddress
from gateways.models import AccessRequest, Feature, IdentityScheme, ToolGrant, ToolSet
from hosts.models import Host
from rules.models import Rule
from scim.models import ProvisioningKey
from servers.models import AuthType
from sinks.models import Sink
from tests import make
from tests.calls import call
from tokens.models import Token

YEAR = timedelta(days=365)


def holder(*capabilities: Capability) -> User:
    """Return a person whose role has exactly these capabilities. The person has no password: hashing one is slow."""
    role = Role.objects.create(name=uuid4().hex)
    role.permissions.set(permissions_of(capabilities))
    return User.objects.create_user(f"{uuid4().hex}@example.com", None, role=role)


@dataclass(frozen=True)
class World:
    """Two people, a token's secret, and the path parameters and valid bodies of requests to each route.

    `owner` owns objects but has no capability. `boss` has every capability.
    """

    owner: User
    boss: User
    secret: str
    addresses: dict[str, dict[str, Any]]
    bodies: dict[tuple[str, str], Any]


def build() -> World:
    """Create the objects that the API's routes need. Requests to their servers fail at once, without a network."""
    holder(Capability.PEOPLE_MANAGE)  # A second person who manages people.
    owner, boss = holder(), holder(*Capability)
    server = make.server(slug="docs", url="https://127.0.0.1:9/mcp", auth_type=AuthType.BEARER)
    closed = make.gateway(slug="closed", reach="teams")
    team = Team.objects.create(name="Insiders")
    team.users.add(owner)
    closed.teams.add(team)
    assignment = make.assignment(closed, server, identity_scheme=IdentityScheme.PER_USER)
    tool = Feature.objects.create(assignment=assignment, name="search", exposed_name="docs__search")
    bot, waiting = make.agent(by=boss), Host.objects.create(kind="headed", name="App", needs_approval=True)
    link = make.connection(bot, closed, owner)
    token, secret = make.token(link)
    HostAtGateway.objects.at(closed, bot).allow(by=boss)
    tool_set = ToolSet.objects.add(gateway=closed, name="Searches", patterns=["docs__s*"], by=boss)
    tool_grant = ToolGrant.objects.give(tool_set, by=boss)
    askable = make.gateway(slug="askable", reach="teams", tools_given="granted", takes_requests=True)
    askable.approvers.add(owner)
    askable_set = ToolSet.objects.add(gateway=askable, name="All", patterns=["*"], by=boss)
    terms: dict[str, Any] = {"tool_set": askable_set, "reason": "For work", "days": 7}
    asked = AccessRequest.objects.ask(askable, **terms, by=holder())
    own_request = AccessRequest.objects.ask(askable, **terms, by=owner)
    identity = make.identity(server, owner)
    event = Event.objects.record(Action.HOST_CREATED, bot, by=boss)
    key = ApiKey.objects.create(user=owner, name="Owner's", digest=b"none", expires_at=timezone.now() + YEAR)
    lonely = Role.objects.create(name="Nobody's")
    everyones = make.gateway(slug="open")
    asking = make.server(slug="asking", url="https://127.0.0.1:9/mcp", auth_type=AuthType.OAUTH)
    make.assignment(everyones, asking, identity_scheme=IdentityScheme.PER_USER)
    view = SavedView.objects.create(owner=owner, name="Denied", query="outcome=denied", is_shared=True)
    newcomers = Role.objects.create(name="Newcomers")
    provisioning = ProvisioningKey.objects.issue(name="Okta", role=newcomers, capabilities=[], by=boss).key
    rule = Rule.objects.add(name="Rule", effect="label", text="all", by=boss)
    held = make.hold(link, server, approvers="person")
    allowance = Allowance.objects.give(held, AllowFor.HOUR, [], by=boss)
    sink = Sink.objects.add(name="Output", kind="stdout", by=boss)
    channel = Channel.objects.add(by=owner, kind="slack", for_workspace=False, address="https://93.184.216.34/hook")
    review = Review.objects.start(
        name="Quarter", scope="teams", subjects=[team], reviewers=[boss], due_on=timezone.now().date(), by=boss
    )
    directory_address = DirectoryAddress.objects.add(team=None, by=boss)
    gateway = {"slug": "closed"}
    one_server = {**gateway, "alias": "docs"}
    return World(
        owner=owner,
        boss=boss,
        secret=secret,
        addresses={
            "accessrequest": {"pk": asked.pk},
            "accessreview": {"pk": review.pk},
            "accessrequest-withdraw": {"pk": own_request.pk},
            "askable": {"slug": "askable"},
            "apikey": {"pk": key.pk},
            "call-detail": {"pk": call().uid},
            "call-now": {"pk": call(host_id=bot.pk, user_id=owner.pk, gateway_id=link.gateway_id).uid},
            "channel": {"pk": channel.pk},
            "directoryaddress": {"pk": directory_address.pk},
            "own-directory-version": {"name": "localhost/open", "version": "latest"},
            "own-directory-versions": {"name": "localhost/open"},
            "event-detail": {"pk": event.uid},
            "host-approve": {"pk": waiting.pk},
            "provisioning": {"pk": provisioning.pk},
            "provisioning-key": {"pk": provisioning.pk},
            "role-detail": {"pk": lonely.pk},
            "rule": {"pk": rule.pk},
            "hold": {"pk": held.pk},
            "allowance": {"pk": allowance.pk},
            "savedview-detail": {"pk": view.pk},
            "sink": {"pk": sink.pk},
            "team-detail": {"pk": team.pk},
            "catalogue-detail": {"pk": tool.pk},
            "feature-accept": {**gateway, "pk": tool.pk},
            "feature-detail": {**gateway, "pk": tool.pk},
            "feature-list": gateway,
            "feature-quarantine": {**gateway, "pk": tool.pk},
            "tool-detail": {**gateway, "pk": tool.pk},
            "tool-list": gateway,
            "tool-refresh": gateway,
            "assignment-list": gateway,
            "assignment-detail": one_server,
            "assignment-disable": one_server,
            "assignment-enable": one_server,
            "assignment-narrow": one_server,
            "assignment-widen": one_server,
            "connection": {"pk": link.pk},
            "connection-identity": {"pk": link.pk, "assignment": assignment.pk},
            "gateway": gateway,
            "gatewayhost-list": gateway,
            "gatewayhost-detail": {**gateway, "host": bot.pk},
            "toolgrant-list": gateway,
            "toolgrant-detail": {**gateway, "pk": tool_grant.pk},
            "toolset-list": gateway,
            "toolset-detail": {**gateway, "pk": tool_set.pk},
            "host": {"pk": bot.pk},
            "identity": {"pk": identity.pk},
            "identity-gateways": {"pk": make.identity(server, label="service account").pk},
            "server": {"slug": "docs"},
            "token": {"pk": token.pk},
            "user": {"pk": holder().pk},
            "user-invite": {"pk": make.invited().pk},
            "user-revoke-invitation": {"pk": make.invited().pk},
        },
        bodies={
            ("accessrequest-list", "post"): {
                "gateway_id": str(askable.pk),
                "tool_set_id": str(askable_set.pk),
                "reason": "For work",
            },
            ("accessreview-list", "post"): {
                "name": "Made",
                "scope": "teams",
                "subject_ids": [str(team.pk)],
                "reviewer_ids": [str(boss.pk)],
                "due_on": timezone.now().date().isoformat(),
            },
            ("accessreview-answer-lines", "post"): {"line_ids": [], "answer": "keep"},
            ("accessreview-reassign", "post"): {"line_ids": [], "reviewer_id": str(boss.pk)},
            ("assignment-list", "post"): {"server_id": str(make.server().pk)},
            ("channel-list", "post"): {"kind": "mail"},
            ("config-apply", "post"): {"files": [{"name": "gateway.yaml", "content": "version: 1"}]},
            ("config-plan", "post"): {"files": [{"name": "gateway.yaml", "content": "version: 1"}]},
            ("connection-identity", "put"): {"identity_id": str(identity.pk)},
            ("directoryaddress-list", "post"): {"team_id": str(team.pk)},
            ("gatewayhost-detail", "put"): {"allowed": True},
            ("gateway-list", "post"): {"name": "Made"},
            ("host-list", "post"): {"name": "Made"},
            ("identity-list", "post"): {"server_id": str(server.pk), "label": "Made", "secret": "s3cret"},
            ("identity-detail", "patch"): {"label": "Renamed"},
            ("identity-secret", "put"): {"secret": "s3cret"},
            ("identity-gateways", "put"): {"gateway_ids": []},
            ("me-ask-for", "post"): {"capability": "api-tokens:manage"},
            ("user-decline-request", "post"): {"capability": "api-tokens:manage"},
            ("me-confirm", "post"): {"password": "s3cret"},
            ("provisioning-key-list", "post"): {"name": "Entra", "role_id": str(newcomers.pk), "capabilities": []},
            ("role-list", "post"): {"name": "Made", "capabilities": []},
            ("rule-list", "post"): {"name": "Made", "effect": "refuse"},
            ("rule-move", "post"): {"position": 1},
            ("savedview-list", "post"): {"name": "Made", "query": "outcome=denied"},
            ("server-bring", "post"): {"text": '{"mcpServers": {}}'},
            ("server-list", "post"): {"name": "Made", "url": "https://93.184.216.34/mcp"},
            ("sign-in", "post"): {"server_id": str(asking.pk)},
            ("sink-list", "post"): {"name": "Made", "kind": "stdout"},
            ("team-list", "post"): {"name": "Made"},
            ("token-list", "post"): {"host_id": str(bot.pk), "gateway_id": str(everyones.pk), "name": "Made"},
            ("toolgrant-list", "post"): {"tool_set_id": str(tool_set.pk), "team_id": str(team.pk)},
            ("toolset-list", "post"): {"name": "Made"},
            ("user-list", "post"): {"email": "made@example.com", "role_id": str(lonely.pk)},
        },
    )


def alive(secret: str) -> bool:
    """Return True if the token with this secret's prefix still has this secret."""
    return Token.objects.get(prefix=secret[:12]).is_held_by(secret)
