"""The routes under /api/: the REST API, without trailing slashes except `schema/`, and its documentation pages."""

import sys
from http import HTTPStatus
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.urls import URLPattern, URLResolver, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.defaults import bad_request, server_error
from psycopg.errors import OperationalError, QueryCanceled
from rest_framework.routers import SimpleRouter

from access.api import AccessResource
from access.review_api import ReviewLines, ReviewResource
from accounts.api import CapabilityResource, Confirm, Me, UserResource
from accounts.groups_api import RoleResource, TeamResource, Workspace
from approvals.api import AllowanceResource, HoldResource
from attention.api import ChannelResource
from auditlog.api import CallResource, EventResource, OwnCalls
from auditlog.saved_views import SavedViewResource
from capabilities import own_resource
from configuration.api import ConfigurationResource
from connections.api import ConnectionIdentities, ConnectionResource, Endings, GatewayConnections, GatewayHosts
from connections.tool_set_api import GatewayGrants, GatewayToolSets
from directory.api import DirectoryAddressResource, OwnDirectory
from gatewayadmin.incident.api import Stops
from gatewayadmin.rest.docs_views import docs, docs_of
from gatewayadmin.rest.openapi import Schema
from gateways.access_api import AccessRequestResource, OwnGateways
from gateways.api import AssignmentResource, GatewayResource, IdentityPlaces, ServerArchive
from gateways.tool_api import CatalogueResource, FeatureResource, ToolResource
from hosts.api import HostResource
from rules.api import RuleResource
from scim.api import ProvisioningKeyResource
from servers.api import ServerResource
from servers.identity_api import IdentityResource
from servers.oauth_client.views import SignIns
from servers.program_api import ProgramResource
from sinks.api import SinkResource
from sso.api import OrganisationResource
from tokens.api import ApiKeyResource, Regenerate, TokenResource
from ui.rest import Resource

app_name = "api"

router = SimpleRouter(trailing_slash=False, use_regex_path=False)
router.register("access", AccessResource, "access")
router.register("access-requests", AccessRequestResource, "accessrequest")
router.register("access-reviews", ReviewResource, "accessreview")
router.register("admin-events", EventResource, "event")
router.register("api-keys", ApiKeyResource, "apikey")
router.register("capabilities", CapabilityResource, "capability")
router.register("connections", ConnectionResource, "connection")
router.register("directory-addresses", DirectoryAddressResource, "directoryaddress")
router.register("gateways", GatewayResource, "gateway")
router.register("hosts", HostResource, "host")
router.register("identities", IdentityResource, "identity")
router.register("log-views", SavedViewResource, "savedview")
router.register("logs", CallResource, "call")
router.register("notification-channels", ChannelResource, "channel")
router.register("provisioning-keys", ProvisioningKeyResource, "provisioning-key")
router.register("roles", RoleResource, "role")
router.register("rules", RuleResource, "rule")
router.register("holds", HoldResource, "hold")
router.register("allowances", AllowanceResource, "allowance")
router.register("servers", ServerResource, "server")
router.register("sinks", SinkResource, "sink")
router.register("teams", TeamResource, "team")
router.register("tokens", TokenResource, "token")
router.register("users", UserResource, "user")


def at(route: str, name: str, view: type[Resource], **actions: Any) -> URLPattern:
    """Return a path that the router does not generate. `actions` maps HTTP methods to names of methods of `view`."""
    return path(route, view.as_view(actions), name=name)


_gateway = "gateways/<slug:slug>"
_server = f"{_gateway}/servers/<str:alias>"
_below = [
    at("access-reviews/<uuid:pk>/lines", "accessreview-lines", ReviewLines, get="list"),
    at("connections/<uuid:pk>/identities", "connection-identities", ConnectionIdentities, get="retrieve"),
    at(
        "connections/<uuid:pk>/identities/<uuid:assignment>",
        "connection-identity",
        ConnectionIdentities,
        put="update",
        delete="destroy",
    ),
    at("connections/<uuid:pk>/regenerate", "connection-regenerate", Regenerate, post="regenerate"),
    at("connections/<uuid:pk>/stop", "connection-stop", Stops, post="connection"),
    at("hosts/<uuid:pk>/archive", "host-archive", Endings, post="host"),
    at("hosts/<uuid:pk>/stop", "host-stop", Stops, post="host"),
    at("identities/<uuid:pk>/gateways", "identity-gateways", IdentityPlaces, get="retrieve", put="update"),
    at("servers/<slug:slug>/archive", "server-archive", ServerArchive, post="archive"),
    at("programs", "program-list", ProgramResource, get="listing"),
    at("servers/<slug:slug>/program", "server-program", ProgramResource, get="program"),
    at("servers/<slug:slug>/program/stderr", "server-standard-error", ProgramResource, get="standard_error"),
    at("servers/<slug:slug>/stop", "server-stop", Stops, post="server"),
    at("tokens/<uuid:pk>/stop", "token-stop", Stops, post="token"),
    at("users/<uuid:pk>/cut-off", "user-cut-off", Endings, post="user"),
    at("users/<uuid:pk>/stop", "user-stop", Stops, post="user"),
    at("sign-ins", "sign-in", SignIns, post="create"),
    at("schema/", "schema", Schema, get="retrieve"),
    at("me", "me", Me, get="retrieve"),
    at("me/ask-for", "me-ask-for", Me, post="ask_for"),
    at("me/calls", "own-call-list", OwnCalls, get="list"),
    at("me/directory/v0.1/servers", "own-directory-list", OwnDirectory, get="servers"),
    at("me/directory/v0.1/servers/<path:name>/versions", "own-directory-versions", OwnDirectory, get="versions"),
    at(
        "me/directory/v0.1/servers/<path:name>/versions/<str:version>",
        "own-directory-version",
        OwnDirectory,
        get="version",
    ),
    at("me/gateways", "own-gateway-list", OwnGateways, get="list"),
    at("me/confirm", "me-confirm", Confirm, post="confirm"),
    at("config/export", "config-export", ConfigurationResource, get="export"),
    at("config/plan", "config-plan", ConfigurationResource, post="plan"),
    at("config/apply", "config-apply", ConfigurationResource, post="apply"),
    at("organisation", "organisation", OrganisationResource, get="retrieve", patch="partial_update"),
    at("organisation/test", "organisation-test", OrganisationResource, post="test"),
    at("workspace", "workspace", Workspace, get="retrieve", patch="partial_update"),
    at("workspace/keep-logs", "workspace-keep-logs", Workspace, post="keep_logs"),
    at("workspace/test-mail", "workspace-test-mail", Workspace, post="test_mail"),
    at("tools", "catalogue-list", CatalogueResource, get="list"),
    at("tools/<uuid:pk>", "catalogue-detail", CatalogueResource, get="retrieve"),
    at(f"{_gateway}/archive", "gateway-archive", Endings, post="gateway"),
    at(f"{_gateway}/connections", "gateway-connections", GatewayConnections, get="list"),
    at(f"{_gateway}/grants", "toolgrant-list", GatewayGrants, get="list", post="create"),
    at(f"{_gateway}/grants/<uuid:pk>", "toolgrant-detail", GatewayGrants, get="retrieve", delete="destroy"),
    at(f"{_gateway}/tool-sets", "toolset-list", GatewayToolSets, get="list", post="create"),
    at(
        f"{_gateway}/tool-sets/<uuid:pk>",
        "toolset-detail",
        GatewayToolSets,
        get="retrieve",
        patch="partial_update",
        delete="destroy",
    ),
    at(f"{_gateway}/hosts", "gatewayhost-list", GatewayHosts, get="list"),
    at(
        f"{_gateway}/hosts/<uuid:host>",
        "gatewayhost-detail",
        GatewayHosts,
        get="retrieve",
        put="update",
        delete="destroy",
    ),
    at(f"{_gateway}/servers", "assignment-list", AssignmentResource, get="list", post="create"),
    at(_server, "assignment-detail", AssignmentResource, get="retrieve", patch="partial_update", delete="destroy"),
    at(f"{_server}/disable", "assignment-disable", AssignmentResource, post="disable"),
    at(f"{_server}/enable", "assignment-enable", AssignmentResource, post="enable"),
    at(f"{_server}/narrow", "assignment-narrow", AssignmentResource, post="narrow"),
    at(f"{_server}/widen", "assignment-widen", AssignmentResource, post="widen"),
    at(f"{_gateway}/features", "feature-list", FeatureResource, get="list"),
    at(f"{_gateway}/features/<uuid:pk>", "feature-detail", FeatureResource, get="retrieve", patch="partial_update"),
    at(f"{_gateway}/features/<uuid:pk>/accept", "feature-accept", FeatureResource, post="accept"),
    at(f"{_gateway}/features/<uuid:pk>/quarantine", "feature-quarantine", FeatureResource, post="quarantine"),
    at(f"{_gateway}/tools", "tool-list", ToolResource, get="list"),
    at(f"{_gateway}/tools/refresh", "tool-refresh", ToolResource, post="refresh"),
    at(f"{_gateway}/tools/<uuid:pk>", "tool-detail", ToolResource, get="retrieve", patch="partial_update"),
]


@csrf_exempt
@login_not_required
@own_resource("answers 404 for everybody, in JSON and without a redirect to sign-in")
def nothing(request: HttpRequest) -> HttpResponse:
    """Answer 404 to every unknown path of the API."""
    return _problem(HTTPStatus.NOT_FOUND, "not_found", "There is nothing at this path.")


# SQLSTATE classes of temporary failures: connections, resources, operator intervention.
BUSY = ("08", "53", "57")
RETRY_S = 2


def failed(request: HttpRequest, **kwargs: Any) -> HttpResponse:
    """Answer a request that failed: with 503 if the database is slow, busy or unreachable, otherwise with 500.

    The answer is JSON below /api/, and a page elsewhere.
    """
    is_program = request.path.startswith("/api/")
    cause = getattr(sys.exception(), "__cause__", None)
    if isinstance(cause, QueryCanceled):
        if is_program:
            return _problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "too_slow", "This took too long. Narrow the request and try again."
            )
        return HttpResponse(render_to_string("503.html"), status=HTTPStatus.SERVICE_UNAVAILABLE)
    if isinstance(cause, OperationalError) and (cause.sqlstate or BUSY[0]).startswith(BUSY):
        return _busy(is_program=is_program)
    if is_program:
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "error", "Something went wrong. The error was logged.")
    return server_error(request, **kwargs)


def _busy(*, is_program: bool) -> HttpResponse:
    """Answer 503, because no database connection was free in time, or the database does not answer."""
    status = HTTPStatus.SERVICE_UNAVAILABLE
    if is_program:
        response: HttpResponse = _problem(status, "busy", "The database is busy. Try again in a few seconds.")
    else:
        response = HttpResponse(render_to_string("503.html", {"is_busy": True}), status=status)
    response["Retry-After"] = str(RETRY_S)
    return response


def refused(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer 400 to requests that Django cannot read. The answer is JSON below /api/, and a page elsewhere."""
    if request.path.startswith("/api/"):
        return _problem(HTTPStatus.BAD_REQUEST, "bad_request", "This request cannot be read.")
    return bad_request(request, exception)


def _problem(status: int, code: str, detail: str) -> HttpResponse:
    return JsonResponse({"detail": detail, "code": code}, status=status)


urlpatterns: list[URLPattern | URLResolver] = [
    *router.urls,
    *_below,
    path("docs/", docs, name="docs"),
    path("docs/<slug:group>/", docs_of, name="docs_of"),
    re_path(r"", nothing, name="nothing"),
]
