"""Every public method of our models, and every interface that offers it: page, API, Django admin, command."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone

from accounts.models import Role, User, WorkspaceSettings
from attention.matters import BY_NAME
from attention.telling import PERSONAL
from capabilities import Capability
from connections.models import Connection, HostAtGateway
from directory.models import DirectoryAddress
from gateways.models import Assignment, Feature, Gateway, ToolGrant
from hosts.models import Host
from proxy.models import Session
from rules.models import Rule
from scim.models import ProvisioningKey
from servers.models import Identity, Server
from sinks.models import Sink
from tests.house.stage import Stage, Step, admin, admin_form, command, page, rest
from tokens.models import Token

NEW_SERVER = "https://93.184.216.34/mcp"
NO_SCOPES = {"scopes-TOTAL_FORMS": 0, "scopes-INITIAL_FORMS": 0}
TWO = ["hosts:read", "logs:read"]
TOLD = [*(name for name, matter in BY_NAME.items() if not matter.is_own), *PERSONAL]


@dataclass(frozen=True)
class Verb:
    """A method of a model or its manager, and the interfaces that call it."""

    name: str
    surfaces: tuple[Step, ...]
    before: Step | None = None
    case: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.case}".strip()


def verb(name: str, *surfaces: Step, before: Step | None = None, case: str = "") -> Verb:
    return Verb(name, surfaces, before, case)


def off(model: Any, thing: str) -> Step:
    """Return a step that disables an object before the tested method is called."""
    return lambda stage: stage.row(model, thing).disable(by=None)


def blocked_there(stage: Stage) -> None:
    stage.row(HostAtGateway, "host_at_gateway").block(by=stage.boss)


def with_a_session(stage: Stage) -> None:
    Session.objects.create(
        pk=UUID(int=1),
        digest=bytes(32),
        connection_id=stage.things["connection"],
        version="2025-11-25",
        client_name="Claude",
    )


def with_another_rule(stage: Stage) -> None:
    Rule.objects.add(name="Another", effect="refuse", by=stage.boss)


def waits_for_a_retry(stage: Stage) -> None:
    Sink.objects.filter(pk=stage.things["sink"]).update(retry_at=timezone.now() + timedelta(minutes=5))


RULE = {"name": "Made", "effect": "refuse", "mode": "watch", "condition": "always"}
PAGE = {"mode": "off", "scopes": "openid profile email", "groups_claim": "groups"}
PROVIDER = PAGE | {"domains": "[]", "protocol": "oidc", "name_id_format": "persistent"}


def broke_the_glass(stage: Stage) -> None:
    """Make the person and the boss break-glass owners, so that either can end the other's break-glass access."""
    Role.objects.make_built_in()
    owners = User.objects.filter(pk__in=(stage.things["person"], stage.things["boss_id"]))
    owners.update(break_glass=True, role=Role.objects.get(name="Super admin"), by_organisation=True)


def flow_at(begun: Any) -> str:
    """Return the URL of an authorize flow's first page. The URLs of the flow's other pages begin with it."""
    return "/connect/{}/".format(begun["Location"].split("/")[2])


def flow(gateway: str, **fields: Any) -> Step:
    """Return a step that completes the authorize flow and creates a token."""

    def walk(stage: Stage) -> object:
        begun = stage.page.get("/connect/", {"host": stage.things["host"], "gateway": stage.things[gateway]})
        return page(f"{flow_at(begun)}token/", scope="all", expires_in_days="90", **fields)(stage)

    return walk


def identity_in_flow(stage: Stage) -> object:
    """Add one's own identity during the authorize flow."""
    begun = stage.page.get("/connect/", {"host": stage.things["host"], "gateway": "closed"})
    return page(f"{flow_at(begun)}identity/{{assignment}}/", identity="new", label="Mine", secret="s3cret of mine")(
        stage
    )


def settings(stage: Stage) -> dict[str, Any]:
    """Return the data of the workspace settings form, with a changed workspace name."""
    form = stage.page.get("/settings/workspace").context["form"]
    kept = {name: bound.value() for name, bound in ((bound.name, bound) for bound in form)}
    return {name: value for name, value in kept.items() if value not in (None, False)} | {"name": "Ours"}


def settings_page(stage: Stage) -> object:
    return page("/settings/workspace", **settings(stage))(stage)


def own_name(stage: Stage) -> object:
    return page("/settings/profile", display_name="Boss", theme="system")(stage)


def ip_list(stage: Stage) -> object:
    return page("/tokens/{token}/edit/", name="renamed", allowed_ips="10.0.0.0/8", expires_in_days="7")(stage)


def last_token(stage: Stage) -> object:
    return page("/tokens/{token}/revoke/", connection="on")(stage)


VERBS = [
    # Apps & Agents
    verb(
        "Host.add_agent",
        page("/hosts/add/", name="Made", description=""),
        page("/settings/api-tokens/create/agent", name="Made"),
        rest("POST /hosts", name="Made"),
        admin_form("hosts/host/add", name="Made", description=""),
    ),
    verb(
        "Host.approve",
        page("/hosts/{waiting}/approve/"),
        page("/logs/remedy/", reason="host_pending", subject="{waiting}"),
        rest("POST /hosts/{waiting}/approve"),
        admin("hosts/host", "approve", "waiting"),
    ),
    verb(
        "Host.disable",
        page("/hosts/{host}/disable/"),
        rest("POST /hosts/{host}/disable"),
        admin("hosts/host", "disable", "host"),
    ),
    verb(
        "Host.enable",
        page("/hosts/{host}/enable/"),
        page("/logs/remedy/", reason="host_disabled", subject="{host}"),
        rest("POST /hosts/{host}/enable"),
        admin("hosts/host", "enable", "host"),
        before=off(Host, "host"),
    ),
    verb(
        "Host.rename",
        page("/hosts/{host}/rename/", name="Other", description="What"),
        rest("PATCH /hosts/{host}", name="Other", description="What"),
        admin_form("hosts/host/{host}/change", name="Other", description="What"),
    ),
    verb(
        "Host.set_enrolment",
        page("/hosts/{host}/enrolment/on/"),
        rest("PATCH /hosts/{host}", allow_enrolment=True),
        admin_form("hosts/host/{host}/change", name="{host_name}", description="", allow_enrolment="on"),
    ),
    # Hosts at gateways
    verb(
        "HostAtGateway.block",
        page("/gateways/closed/access/hosts/{host}/block/"),
        rest("PUT /gateways/closed/hosts/{host}", allowed=False),
        admin("connections/hostatgateway", "block", "host_at_gateway"),
    ),
    verb(
        "HostAtGateway.allow",
        page("/gateways/closed/access/hosts/{host}/allow/"),
        page("/logs/remedy/", reason="host_not_allowed_here", subject="{connection}"),
        rest("PUT /gateways/closed/hosts/{host}", allowed=True),
        admin("connections/hostatgateway", "allow", "host_at_gateway"),
        before=blocked_there,
    ),
    verb(
        "Connection.allow_host",
        page("/logs/remedy/", reason="host_not_allowed_here", subject="{connection}"),
        before=blocked_there,
    ),
    verb(
        "HostAtGateway.reset",
        page("/gateways/closed/access/hosts/{host}/reset/"),
        rest("DELETE /gateways/closed/hosts/{host}"),
        admin("connections/hostatgateway", "reset", "host_at_gateway"),
    ),
    verb(
        "HostAtGateway.restrict",
        page("/gateways/closed/access/hosts/", hosts_allowed="listed"),
        rest("PATCH /gateways/closed", hosts_allowed="listed"),
    ),
    verb(
        "HostAtGateway.limit",
        page("/gateways/closed/access/hosts/{host}/limit/", tool_set="{tool_set}"),
        rest("PUT /gateways/closed/hosts/{host}", tool_set_id="{tool_set}"),
    ),
    # Tools given to people
    verb(
        "ToolSet.add",
        page("/gateways/closed/access/tools/add/", name="Made", patterns="docs__s*", members="docs__search"),
        rest("POST /gateways/closed/tool-sets", name="Made", patterns=["docs__s*"], members=["docs__search"]),
    ),
    verb(
        "ToolSet.edit",
        page("/tool-sets/{tool_set}/edit/", name="Other", effects=["read_only"]),
        rest("PATCH /gateways/closed/tool-sets/{tool_set}", name="Other", effects=["read_only"], patterns=[]),
    ),
    verb(
        "ToolSet.archive",
        page("/tool-sets/{tool_set}/archive/"),
        rest("DELETE /gateways/closed/tool-sets/{tool_set}"),
        admin("gateways/toolset", "archive", "tool_set"),
        before=lambda stage: stage.row(ToolGrant, "tool_grant").end(by=stage.boss),
    ),
    verb(
        "ToolGrant.give",
        page("/tool-sets/{tool_set}/give/", to="team", team="{team}"),
        rest("POST /gateways/closed/grants", tool_set_id="{tool_set}", team_id="{team}"),
    ),
    verb(
        "ToolGrant.end",
        page("/tool-grants/{tool_grant}/end/"),
        rest("DELETE /gateways/closed/grants/{tool_grant}"),
        admin("gateways/toolgrant", "end", "tool_grant"),
    ),
    # Requests for access
    verb(
        "AccessRequest.ask",
        page("/access/gateways/askable/request/", tool_set="{askable_set}", reason="For work", days="7"),
        rest("POST /access-requests", gateway_id="{askable}", tool_set_id="{askable_set}", reason="For work", days=7),
    ),
    verb(
        "AccessRequest.approve",
        page("/access/requests/{access_request}/approve/", days="7", answer="Fine"),
        rest("POST /access-requests/{access_request}/approve", answer="Fine"),
    ),
    verb(
        "AccessRequest.decline",
        page("/access/requests/{access_request}/decline/", answer="Why?"),
        rest("POST /access-requests/{access_request}/decline", answer="Why?"),
    ),
    verb(
        "AccessRequest.withdraw",
        page("/access/requests/{own_request}/withdraw/"),
        rest("POST /access-requests/{own_request}/withdraw"),
    ),
    verb(
        "AccessRequest.end_access",
        page("/access/requests/{approved_request}/end/"),
        rest("POST /access-requests/{approved_request}/end"),
    ),
    # Held calls
    verb(
        "Hold.approve",
        page("/approvals/{hold}/decide/", act="approve", sentence="Fine"),
        rest("POST /holds/{hold}/approve", sentence="Fine"),
    ),
    verb(
        "Hold.deny",
        page("/approvals/{hold}/decide/", act="deny", sentence="Why?"),
        rest("POST /holds/{hold}/deny", sentence="Why?"),
    ),
    verb(
        "Hold.withdraw",
        page("/approvals/{own_hold}/withdraw/"),
        rest("POST /holds/{own_hold}/withdraw"),
    ),
    verb(
        "Connection.set_hold_wait",
        page("/approvals/{hold}/wait/", seconds="60"),
        rest("PATCH /connections/{connection}", hold_wait=60),
    ),
    verb(
        "Allowance.end",
        page("/approvals/allowed/{allowance}/end/"),
        rest("POST /allowances/{allowance}/end"),
        admin("approvals/allowance", "end", "allowance"),
    ),
    # Access reviews
    verb(
        "Review.start",
        page(
            "/access/reviews/start/",
            name="Made",
            scope="gateways",
            subjects="closed",
            reviewers="{boss}",
            due_on="{today}",
            unanswered="list",
            self_review="on",
        ),
        rest(
            "POST /access-reviews",
            name="Made",
            scope="gateways",
            subject_ids=["{gateway}"],
            reviewer_ids=["{boss_id}"],
            due_on="{today}",
            self_review=True,
        ),
    ),
    verb(
        "Review.answer",
        page("/access/reviews/{access_review}/answer/", act="all:keep", kind="team"),
        rest("POST /access-reviews/{access_review}/answer", line_ids=["{review_line}"], answer="keep"),
    ),
    verb(
        "Review.reassign",
        page("/access/reviews/{access_review}/reassign/?line={review_line}", to="{colleague_email}"),
        rest("POST /access-reviews/{access_review}/reassign", line_ids=["{review_line}"], reviewer_id="{colleague}"),
    ),
    verb(
        "Review.remind",
        page("/access/reviews/{access_review}/remind/"),
        rest("POST /access-reviews/{access_review}/remind"),
    ),
    verb(
        "Review.close",
        page("/access/reviews/{access_review}/close/"),
        rest("POST /access-reviews/{access_review}/close"),
    ),
    verb("GatewayGrant.end", admin("gateways/gatewaygrant", "end", "gateway_grant")),
    # Connections
    verb(
        "Connection.archive_gateway",
        page("/gateways/closed/archive/", typed="{gateway_name}"),
        rest("POST /gateways/closed/archive"),
        admin("gateways/gateway", "archive", "gateway"),
        before=off(Gateway, "gateway"),
    ),
    verb(
        "Connection.archive_host",
        page("/hosts/{host}/archive/", typed="{host_name}"),
        rest("POST /hosts/{host}/archive"),
        admin("hosts/host", "archive", "host"),
        before=off(Host, "host"),
    ),
    verb(
        "Connection.cut_off",
        page("/incident/people/{owner}/stop/"),
        rest("POST /users/{owner}/cut-off"),
        rest("POST /users/{owner}/stop"),
        admin("accounts/user", "cut_off", "owner"),
    ),
    verb(
        "Connection.disable",
        page("/connections/{connection}/disable/"),
        rest("POST /connections/{connection}/disable"),
        admin("connections/connection", "disable", "connection"),
    ),
    verb(
        "Connection.enable",
        page("/connections/{connection}/enable/"),
        page("/logs/remedy/", reason="connection_disabled", subject="{connection}"),
        rest("POST /connections/{connection}/enable"),
        admin("connections/connection", "enable", "connection"),
        before=off(Connection, "connection"),
    ),
    verb(
        "Connection.open",
        flow("open_slug", name="Made"),
        rest("POST /tokens", host_id="{host}", gateway_id="{open}", name="Made"),
        command("issue_token", user="{boss}", host="{host_name}", gateway="{open_slug}", name="Made"),
    ),
    verb(
        "Connection.revoke",
        page("/connections/{connection}/revoke/"),
        page("/incident/connections/{connection}/stop/"),
        rest("POST /connections/{connection}/revoke"),
        rest("POST /connections/{connection}/stop"),
        last_token,
        admin("connections/connection", "revoke", "connection"),
    ),
    verb("Connection.stop_host", page("/incident/hosts/{host}/stop/"), rest("POST /hosts/{host}/stop")),
    verb(
        "Connection.end_sessions",
        page("/connections/{connection}/sessions/end/"),
        rest("DELETE /connections/{connection}/sessions"),
        before=with_a_session,
    ),
    verb(
        "Connection.use_identity",
        page("/connections/{mine}/identities/{assignment}/", identity="{second}"),
        rest("PUT /connections/{mine}/identities/{assignment}", identity_id="{second}"),
    ),
    verb(
        "Connection.drop_identity",
        page("/connections/{mine}/identities/{assignment}/drop/"),
        rest("DELETE /connections/{mine}/identities/{assignment}"),
    ),
    verb(
        "Connection.bring_identity",
        page(
            "/connections/{mine}/identities/{assignment}/",
            identity="new",
            label="Mine",
            secret="s3cret of mine",
            everywhere="1",
        ),
        rest("POST /identities", server_id="{server}", label="Mine", secret="s3cret of mine", instead_of="{first}"),
    ),
    verb(
        "Connection.carry",
        page("/connections/{mine}/identities/{assignment}/", identity="{second}", everywhere="1"),
    ),
    # Tokens
    verb(
        "Token.issue",
        flow("slug", name="Second"),
        rest("POST /tokens", host_id="{host}", gateway_id="{gateway}", name="Second"),
        command("issue_token", user="{boss}", host="{host_name}", gateway="{slug}", name="Second"),
    ),
    verb(
        "Token.edit",
        ip_list,
        rest("PATCH /tokens/{token}", name="renamed", allowed_ips=["10.0.0.0/8"], expires_in_days=7),
    ),
    verb(
        "Token.edit",
        page("/tokens/{token}/edit/", name="renamed", allowed_ips="", expires_in_days=""),
        rest("PATCH /tokens/{token}", name="renamed"),
        admin_form("tokens/token/{token}/change", name="renamed", **NO_SCOPES),
        case="name",
    ),
    verb(
        "Token.revoke",
        page("/tokens/{token}/revoke/"),
        page("/incident/tokens/{token}/stop/"),
        rest("POST /tokens/{token}/revoke"),
        rest("DELETE /tokens/{token}"),
        rest("POST /tokens/{token}/stop"),
        admin("tokens/token", "revoke", "token"),
    ),
    verb("Token.revoke_with_connection", last_token),
    verb(
        "Token.rotate",
        page("/tokens/{own_token}/regenerate/"),
        page("/connections/{own_connection}/regenerate/"),
        rest("POST /tokens/{own_token}/rotate"),
        rest("POST /connections/{own_connection}/regenerate"),
    ),
    verb(
        "Token.rotate",
        page("/tokens/{own_token}/regenerate/", overlap_hours="24"),
        rest("POST /tokens/{own_token}/rotate", overlap_hours=24),
        case="overlapping",
    ),
    verb(
        "Token.ask_for_new",
        page("/tokens/{token}/ask-for-new/"),
        page("/connections/{connection}/regenerate/"),
        rest("POST /tokens/{token}/ask-for-new"),
        rest("POST /connections/{connection}/regenerate"),
        admin("tokens/token", "ask_for_new", "token"),
    ),
    verb(
        "Token.collect",
        page("/tokens/{own_token}/collect/"),
        rest("POST /tokens/{own_token}/collect"),
        before=lambda stage: stage.row(Token, "own_token").ask_for_new(by=stage.boss),
    ),
    verb(
        "Token.end_previous",
        page("/tokens/{own_token}/end-previous/"),
        rest("POST /tokens/{own_token}/end-previous"),
        before=lambda stage: stage.row(Token, "own_token").rotate(by=stage.boss, overlap_hours=24),
    ),
    verb(
        "Token.renew_key",
        page("/connections/{app_connection}/regenerate/"),
        rest("POST /connections/{app_connection}/regenerate"),
    ),
    verb("ApiKey.revoke", page("/settings/api-keys/{api_key}/revoke"), rest("POST /api-keys/{api_key}/revoke")),
    # Gateways
    verb(
        "Gateway.add",
        page("/gateways/add/", name="Made", slug="made", description="What", reach="everyone"),
        rest("POST /gateways", name="Made", slug="made", description="What", reach="everyone"),
    ),
    verb(
        "Gateway.disable",
        page("/gateways/closed/disable/"),
        rest("POST /gateways/closed/disable"),
        admin("gateways/gateway", "disable", "gateway"),
    ),
    verb(
        "Gateway.enable",
        page("/gateways/closed/enable/"),
        page("/logs/remedy/", reason="gateway_disabled", subject="{gateway}"),
        rest("POST /gateways/closed/enable"),
        admin("gateways/gateway", "enable", "gateway"),
        before=off(Gateway, "gateway"),
    ),
    verb(
        "Gateway.edit",
        page("/gateways/closed/rename/", name="Other", description="What"),
        rest("PATCH /gateways/closed", name="Other", description="What"),
        case="name",
    ),
    verb(
        "Gateway.edit",
        page("/gateways/open/reach/", reach="teams", teams=["{team}"]),
        rest("PATCH /gateways/open", reach="teams", team_ids=["{team}"]),
        case="reach",
    ),
    verb(
        "Gateway.edit",
        page("/gateways/closed/access/tools/given/", tools_given="granted"),
        rest("PATCH /gateways/closed", tools_given="granted"),
        case="tools",
    ),
    verb("Gateway.open_to", page("/people/teams/{team}/gateways/", gateways=[])),
    # Servers behind them
    verb(
        "Assignment.archive_server",
        page("/servers/docs/archive/", typed="{server_name}"),
        rest("POST /servers/docs/archive"),
        admin("servers/server", "archive", "server"),
        before=off(Server, "server"),
    ),
    verb(
        "Assignment.assign",
        page("/gateways/closed/assign/", server="{bare_slug}", alias="extra", identity_scheme="none"),
        rest("POST /gateways/closed/servers", server_id="{bare}", alias="extra", identity_scheme="none"),
    ),
    verb(
        "Assignment.disable",
        page("/assignments/{assignment}/disable/"),
        rest("POST /gateways/closed/servers/docs/disable"),
        admin("gateways/assignment", "disable", "assignment"),
    ),
    verb(
        "Assignment.enable",
        page("/assignments/{assignment}/enable/"),
        page("/logs/remedy/", reason="assignment_disabled", subject="{assignment}"),
        rest("POST /gateways/closed/servers/docs/enable"),
        admin("gateways/assignment", "enable", "assignment"),
        before=off(Assignment, "assignment"),
    ),
    verb(
        "Assignment.edit",
        page("/assignments/{assignment}/edit/", alias="texts", identity_scheme="per_user"),
        rest("PATCH /gateways/closed/servers/docs", alias="texts"),
        case="alias",
    ),
    verb(
        "Assignment.edit",
        page("/assignments/{assignment}/policy/", policy="selected"),
        rest("PATCH /gateways/closed/servers/docs", tool_policy="selected"),
        case="policy",
    ),
    verb(
        "Assignment.narrow",
        page("/assignments/{assignment}/narrow/"),
        rest("POST /gateways/closed/servers/docs/narrow"),
    ),
    verb(
        "Assignment.widen",
        page("/assignments/{assignment}/widen/"),
        rest("POST /gateways/closed/servers/docs/widen"),
        before=lambda stage: stage.row(Assignment, "assignment").narrow([], by=stage.boss),
    ),
    verb(
        "Assignment.remove",
        page("/assignments/{assignment}/remove/"),
        rest("DELETE /gateways/closed/servers/docs"),
        admin("gateways/assignment", "remove", "assignment"),
    ),
    verb(
        "Feature.disable",
        page("/tools/{tool}/disable/"),
        rest("PATCH /gateways/closed/tools/{tool}", enabled=False),
        admin("gateways/feature", "disable", "tool"),
    ),
    verb(
        "Feature.enable",
        page("/tools/{tool}/enable/"),
        page("/logs/remedy/", reason="tool_disabled", subject="{tool}"),
        rest("PATCH /gateways/closed/tools/{tool}", enabled=True),
        admin("gateways/feature", "enable", "tool"),
        before=off(Feature, "tool"),
    ),
    verb(
        "Feature.say_effect",
        page("/features/{tool}/effect/", said_effect="read_only"),
        rest("PATCH /gateways/closed/tools/{tool}", said_effect="read_only"),
        rest("PATCH /gateways/closed/features/{tool}", said_effect="read_only"),
    ),
    verb(
        "Feature.say_texts",
        page("/features/{tool}/texts/", title="Search the docs"),
        rest("PATCH /gateways/closed/tools/{tool}", said_title="Search the docs"),
        rest("PATCH /gateways/closed/features/{tool}", said_title="Search the docs"),
    ),
    verb(
        "Feature.accept",
        page("/features/{tool}/accept/", definition=""),
        rest("POST /gateways/closed/features/{tool}/accept"),
        admin("gateways/feature", "accept", "tool"),
        before=lambda stage: stage.row(Feature, "tool").quarantine(by=None),
    ),
    verb(
        "Feature.quarantine",
        page("/features/{tool}/quarantine/"),
        rest("POST /gateways/closed/features/{tool}/quarantine"),
        admin("gateways/feature", "quarantine", "tool"),
    ),
    # Servers and identities
    verb(
        "Server.add",
        page("/servers/add/", name="Made", slug="made", url=NEW_SERVER, auth_type="none", timeout_seconds=30),
        rest("POST /servers", name="Made", slug="made", url=NEW_SERVER),
    ),
    verb(
        "Server.edit",
        page("/servers/{bare_slug}/edit/", name="Other", url=NEW_SERVER, auth_type="none", timeout_seconds=9),
        rest("PATCH /servers/{bare_slug}", name="Other", url=NEW_SERVER, timeout_seconds=9),
    ),
    verb(
        "Server.disable",
        page("/servers/docs/disable/"),
        page("/incident/servers/{server}/stop/"),
        rest("POST /servers/docs/disable"),
        rest("POST /servers/docs/stop"),
        admin("servers/server", "disable", "server"),
    ),
    verb(
        "Server.enable",
        page("/servers/docs/enable/"),
        page("/logs/remedy/", reason="server_disabled", subject="{server}"),
        rest("POST /servers/docs/enable"),
        admin("servers/server", "enable", "server"),
        before=off(Server, "server"),
    ),
    verb(
        "Identity.bring",
        page("/servers/docs/identities/add/", label="Shared", secret="s3cret of all"),
        rest("POST /identities", server_id="{server}", label="Shared", secret="s3cret of all", shared=True),
        case="shared",
    ),
    verb(
        "Identity.bring",
        identity_in_flow,
        rest("POST /identities", server_id="{server}", label="Mine", secret="s3cret of mine"),
        case="own",
    ),
    verb(
        "Identity.disable",
        page("/identities/{identity}/disable/"),
        rest("POST /identities/{identity}/disable"),
        admin("servers/identity", "disable", "identity"),
    ),
    verb(
        "Identity.enable",
        page("/identities/{identity}/enable/"),
        page("/logs/remedy/", reason="identity_disabled", subject="{identity}"),
        rest("POST /identities/{identity}/enable"),
        admin("servers/identity", "enable", "identity"),
        before=off(Identity, "identity"),
    ),
    verb(
        "Identity.confirm",
        page("/identities/{shared}/confirm/"),
        rest("POST /identities/{shared}/confirm"),
        admin("servers/identity", "confirm", "shared"),
        before=lambda stage: Identity.objects.filter(pk=stage.things["shared"]).update(
            unconfirmed_since=timezone.now()
        ),
    ),
    verb(
        "Identity.rename",
        rest("PATCH /identities/{shared}", label="Other"),
        admin_form("servers/identity/{shared}/change", label="Other"),
    ),
    verb(
        "Identity.replace",
        page("/identities/{shared}/replace/", secret="another s3cret"),
        rest("PUT /identities/{shared}/secret", secret="another s3cret"),
    ),
    verb(
        "Identity.revoke",
        page("/identities/{identity}/revoke/"),
        rest("POST /identities/{identity}/revoke"),
        admin("servers/identity", "revoke", "identity"),
    ),
    verb("ClientRegistration.end", admin("upstream_oauth/clientregistration", "end", "client_registration")),
    # People
    verb(
        "User.invite",
        page("/people/invite/", emails="Made <made@example.com>", role="{role}"),
        rest("POST /users", email="made@example.com", display_name="Made", role_id="{role}"),
    ),
    verb(
        "User.renew_invitation",
        page("/people/{invited}/invite/", epoch=0),
        rest("POST /users/{invited}/invite"),
    ),
    verb(
        "User.revoke_invitation",
        page("/people/{invited}/invitation/revoke/"),
        rest("POST /users/{invited}/revoke-invitation"),
        admin("accounts/user", "revoke_invitation", "invited"),
    ),
    verb(
        "User.decline_request",
        page("/people/{person}/decline-request/", capability=Capability.LOGS_READ.slug),
        rest("POST /users/{person}/decline-request", capability=Capability.LOGS_READ.slug),
        before=lambda stage: stage.row(User, "person").ask_for(Capability.LOGS_READ),
    ),
    verb(
        "User.edit",
        page("/people/{person}/edit/", email="other@example.com", display_name="Other"),
        rest("PATCH /users/{person}", email="other@example.com", display_name="Other"),
    ),
    verb("User.edit", own_name, rest("PATCH /users/{boss_id}", display_name="Boss"), case="oneself"),
    verb(
        "User.give_role",
        page("/people/{person}/role/", role="{role}"),
        rest("PATCH /users/{person}", role_id="{role}"),
    ),
    verb(
        "User.set_staff",
        page("/people/{person}/staff/on/"),
        rest("PATCH /users/{person}", is_staff=True),
        admin("accounts/user", "make_staff", "person"),
    ),
    verb(
        "User.set_staff",
        page("/people/{boss_id}/staff/off/"),
        rest("PATCH /users/{boss_id}", is_staff=False),
        admin("accounts/user", "end_staff", "boss_id"),
        case="no more",
    ),
    verb(
        "User.deactivate",
        page("/people/{person}/deactivate/"),
        rest("POST /users/{person}/deactivate"),
        admin("accounts/user", "deactivate", "person"),
    ),
    verb(
        "User.reactivate",
        page("/people/{person}/reactivate/"),
        rest("POST /users/{person}/reactivate"),
        admin("accounts/user", "reactivate", "person"),
        before=lambda stage: stage.row(User, "person").deactivate(by=None),
    ),
    verb(
        "User.end_sessions",
        page("/people/{boss_id}/sign-out/"),
        rest("POST /users/{boss_id}/sign-out"),
        page("/settings/sessions/end-all"),
        admin("accounts/user", "sign_out", "boss_id"),
    ),
    verb(
        "Role.add",
        page("/people/roles/add/", name="Made", capabilities=TWO),
        rest("POST /roles", name="Made", capabilities=TWO),
    ),
    verb(
        "Role.edit",
        page("/people/roles/{role}/", name="Other", capabilities=TWO),
        rest("PATCH /roles/{role}", name="Other", capabilities=TWO),
    ),
    verb("Role.remove", page("/people/roles/{role}/delete/"), rest("DELETE /roles/{role}")),
    verb(
        "Team.add",
        page("/people/teams/add/", name="Made"),
        rest("POST /teams", name="Made"),
        admin_form("accounts/team/add", name="Made"),
    ),
    verb(
        "Team.edit",
        page("/people/teams/{team}/rename/", name="Other"),
        rest("PATCH /teams/{team}", name="Other"),
        admin_form("accounts/team/{team}/change", name="Other", users=["{owner}"]),
        case="name",
    ),
    verb(
        "Team.edit",
        page("/people/teams/{team}/add/", emails="{boss}"),
        rest("PATCH /teams/{team}", user_ids=["{owner}", "{boss_id}"]),
        admin_form("accounts/team/{team}/change", name="Insiders", users=["{owner}", "{boss_id}"]),
        case="people",
    ),
    verb(
        "Team.remove",
        page("/people/teams/{team}/delete/"),
        rest("DELETE /teams/{team}"),
        admin_form("accounts/team/{team}/delete", post="yes"),
    ),
    verb(
        "SavedView.add",
        page("/logs/views/", name="Made", query="outcome=denied"),
        rest("POST /log-views", name="Made", query="outcome=denied", is_shared=False),
    ),
    verb(
        "SavedView.edit",
        page("/logs/views/{view}/", act="share"),
        rest("PATCH /log-views/{view}", is_shared=True),
    ),
    verb("SavedView.remove", page("/logs/views/{view}/", act="remove"), rest("DELETE /log-views/{view}")),
    verb(
        "ProvisioningKey.issue",
        page("/settings/provisioning/add/", id="0b7a0a3e-7a43-4f0e-9d6e-0c5f4f8f2a11", name="Made", role="{role}"),
        rest("POST /provisioning-keys", name="Made", role_id="{role}", capabilities=[]),
    ),
    verb(
        "ProvisioningKey.roll",
        page("/settings/provisioning/{provisioning_key}/roll/", prefix="{provisioning_prefix}", overlap_hours="24"),
        rest("POST /provisioning-keys/{provisioning_key}/roll", overlap_hours=24),
    ),
    verb(
        "ProvisioningKey.end_previous",
        page("/settings/provisioning/{provisioning_key}/end-previous/"),
        rest("POST /provisioning-keys/{provisioning_key}/end-previous"),
        admin("scim/provisioningkey", "end_previous", "provisioning_key"),
        before=lambda stage: stage.row(ProvisioningKey, "provisioning_key").roll(by=stage.boss, overlap_hours=24),
    ),
    verb(
        "ProvisioningKey.revoke",
        page("/settings/provisioning/{provisioning_key}/revoke/"),
        rest("POST /provisioning-keys/{provisioning_key}/revoke"),
        admin("scim/provisioningkey", "revoke", "provisioning_key"),
    ),
    verb(
        "Channel.add",
        page("/settings/notifications/add?kind=slack", address="https://93.184.216.34/made", enabled="on", zone="UTC"),
        rest("POST /notification-channels", kind="slack", address="https://93.184.216.34/made", matters=[]),
    ),
    verb(
        "Channel.edit",
        page("/settings/notifications/{channel}", enabled="on", zone="Europe/Berlin"),
        rest("PATCH /notification-channels/{channel}", matters=[], zone="Europe/Berlin"),
    ),
    verb(
        "Channel.edit",
        page("/settings/notifications/{channel}", matters=[*TOLD], zone="UTC"),
        rest("PATCH /notification-channels/{channel}", enabled=False),
        admin("attention/channel", "disable", "channel"),
        case="disabled",
    ),
    verb(
        "Channel.edit",
        page("/settings/notifications/{channel}", matters=[*TOLD], zone="UTC", enabled="on"),
        rest("PATCH /notification-channels/{channel}", enabled=True),
        admin("attention/channel", "enable", "channel"),
        before=rest("PATCH /notification-channels/{channel}", enabled=False),
        case="enabled",
    ),
    verb(
        "Channel.remove",
        page("/settings/notifications/{channel}/remove"),
        rest("DELETE /notification-channels/{channel}"),
        admin("attention/channel", "remove", "channel"),
    ),
    verb(
        "Rule.add",
        page("/rules/add/", **RULE),
        rest("POST /rules", name="Made", effect="refuse"),
    ),
    verb(
        "Rule.edit",
        page("/rules/{rule}/", **RULE | {"name": "Other", "effect": "label", "text": "all"}),
        rest("PATCH /rules/{rule}", name="Other"),
    ),
    verb(
        "Rule.disable",
        page("/rules/{rule}/disable/"),
        rest("POST /rules/{rule}/disable"),
        admin("rules/rule", "disable", "rule"),
    ),
    verb(
        "Rule.enable",
        page("/rules/{rule}/enable/"),
        rest("POST /rules/{rule}/enable"),
        admin("rules/rule", "enable", "rule"),
        before=off(Rule, "rule"),
    ),
    verb("Rule.set_mode", page("/rules/{rule}/turn-on/"), admin("rules/rule", "turn_on", "rule")),
    verb(
        "Rule.move",
        page("/rules/{rule}/move/", to="down"),
        rest("POST /rules/{rule}/move", position=2),
        before=with_another_rule,
    ),
    verb(
        "Rule.remove",
        page("/rules/{rule}/remove/"),
        rest("DELETE /rules/{rule}"),
        admin("rules/rule", "remove", "rule"),
    ),
    verb(
        "Sink.add",
        page("/settings/sinks/add/?kind=stdout", name="Made", sends_calls="on"),
        rest("POST /sinks", name="Made", kind="stdout", sends_events=False),
    ),
    verb(
        "Sink.edit",
        page("/settings/sinks/{sink}/", name="Other", sends_calls="on"),
        rest("PATCH /sinks/{sink}", name="Other", sends_events=False),
    ),
    verb(
        "DirectoryAddress.add",
        page("/settings/directory/add/", audiences="{team}"),
        rest("POST /directory-addresses", team_id="{team}"),
    ),
    verb(
        "DirectoryAddress.disable",
        page("/settings/directory/{directory_address}/disable/"),
        rest("POST /directory-addresses/{directory_address}/disable"),
        admin("directory/directoryaddress", "disable", "directory_address"),
    ),
    verb(
        "DirectoryAddress.enable",
        page("/settings/directory/{directory_address}/enable/"),
        rest("POST /directory-addresses/{directory_address}/enable"),
        admin("directory/directoryaddress", "enable", "directory_address"),
        before=off(DirectoryAddress, "directory_address"),
    ),
    verb(
        "DirectoryAddress.regenerate",
        page("/settings/directory/{directory_address}/regenerate/"),
        rest("POST /directory-addresses/{directory_address}/regenerate"),
        admin("directory/directoryaddress", "regenerate", "directory_address"),
    ),
    verb(
        "Sink.disable",
        page("/settings/sinks/{sink}/disable/"),
        rest("POST /sinks/{sink}/disable"),
        admin("sinks/sink", "disable", "sink"),
    ),
    verb(
        "Sink.enable",
        page("/settings/sinks/{sink}/enable/"),
        rest("POST /sinks/{sink}/enable"),
        admin("sinks/sink", "enable", "sink"),
        before=off(Sink, "sink"),
    ),
    verb(
        "Sink.send_now",
        page("/settings/sinks/{sink}/send-now/"),
        rest("POST /sinks/{sink}/send-now"),
        admin("sinks/sink", "send_now", "sink"),
        before=waits_for_a_retry,
    ),
    verb(
        "Sink.remove",
        page("/settings/sinks/{sink}/remove/"),
        rest("DELETE /sinks/{sink}"),
        admin("sinks/sink", "remove", "sink"),
    ),
    verb(
        "Provider.edit",
        page("/settings/organisation/", name="Ours", **PAGE),
        rest("PATCH /organisation", name="Ours"),
        admin_form("sso/provider/{provider}/change", **PROVIDER | {"name": "Ours"}),
    ),
    verb(
        "User.set_break_glass",
        page("/people/{person}/break-glass/off/"),
        rest("PATCH /users/{person}", break_glass=False),
        admin("accounts/user", "end_break_glass", "person"),
        before=broke_the_glass,
    ),
    verb("WorkspaceSettings.edit", settings_page, rest("PATCH /workspace", name="Ours")),
    verb(
        "WorkspaceSettings.keep_logs",
        page("/settings/workspace/keep-logs"),
        rest("POST /workspace/keep-logs"),
        admin("accounts/workspacesettings", "keep_logs", "workspace"),
        before=lambda stage: WorkspaceSettings.edit(by=None, log_retention_days=30),
    ),
]
# Methods called only by other methods: for example, authorising an app creates the app and its key.
INSIDE = {
    "ApiKey.end",
    "ApiKey.revoke_all",
    "Binding.lend",
    "Channel.must_be_open_to",
    "Connection.end_all_of",
    "Connection.revoke_all",
    "DirectoryPerson.describe",  # Methods of DirectoryPerson and DirectoryTeam serve directories: tests/scim.
    "DirectoryPerson.remove",
    "DirectoryPerson.set_active",
    "Connection.rebind",  # By Connection.use_identity, and when a connection is opened again.
    "DirectoryTeam.describe",
    "Event.record",
    "Event.record_all",
    "Feature.switch_all",  # By configuration files, and for unused tools.
    "GatewayGrant.give",  # By AccessRequest.approve.
    "Allowance.give",  # By Hold.approve.
    "Host.appear",
    "Host.playground",
    "Provider.read_metadata_again",  # Read by *Test* and during sign-in, to refresh the provider's metadata.
    "Review.end_lines",
    "Rule.arrange",  # By configuration files.
    "Review.note_answers",
    "Review.seal",
    "Review.why_not",
    "Server.end_client_of_other_endpoints",
    "Sink.must_be_open_to",
    "Sink.set_up",
    "Token.provide_key",
    "User.changed_by",
    "User.end_access",
    "User.invite_all",
    "User.must_be_resettable",
    "User.note_password_link",
    "User.provision",
}
