"""The page *Add a server*: test a server, then store it with a credential and assign it to gateways in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.db import IntegrityError, transaction
from django.db.models import Count, Q
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from accounts.models import User
from capabilities import Capability, requires
from connections.models import Connection
from gateways.models import (
    Assignment,
    Effect,
    Feature,
    FeatureKind,
    Gateway,
    IdentityScheme,
    Reach,
    ToolPolicy,
    allow_identity,
)
from servers import programs, well_known
from servers.discovery import (
    Discovered,
    DiscoveryFailed,
    DiscoveryRefused,
    NoEndpoint,
    discover_features,
    probe,
    record_contact,
    refusal_of,
)
from servers.forms import TAKEN, SecretForm, ServerForm, Trial, suggest
from servers.models import BUILT_IN_URLS, ENDPOINTS, SIGN_IN_SETTINGS, AuthType, Era, Health, Identity, Server
from servers.oauth_client.discovery import Needs, needs_of
from servers.oauth_client.registration import redirect_uri
from servers.upstream_guard import upstream_guard
from ui.forms import named
from ui.pages import AppRequest, leave, number_of, show

OWN, SHARED = "own", "shared"
ALL, READ_ONLY, NONE_YET = "all", "read_only", "none"
POLICIES = {ALL: ToolPolicy.ALLOW_ALL, READ_ONLY: ToolPolicy.SELECTED, NONE_YET: ToolPolicy.SELECTED}
SHOWN_TOOLS = 12
USUAL_PATHS = ("/mcp", "/sse")


class NewServerForm(Trial, ServerForm):
    """Form for a new server, its identity scheme and credential, the gateways to add it to, and its tool policy."""

    who = forms.ChoiceField(
        label="Identity",
        required=False,
        choices=[(OWN, "Each person adds their own credential"), (SHARED, "One shared credential for everybody")],
        initial=OWN,
        widget=forms.RadioSelect,
    )
    secret = forms.CharField(label="Credential", required=False, max_length=4000, widget=forms.PasswordInput)
    gateways = forms.ModelMultipleChoiceField(
        Gateway.objects.none(), required=False, to_field_name="slug", widget=forms.CheckboxSelectMultiple
    )
    own_gateway = forms.BooleanField(
        label="A new gateway",
        required=False,
    )
    tools = forms.ChoiceField(
        required=False,
        choices=[(ALL, "All"), (READ_ONLY, "Read only"), (NONE_YET, "None yet")],
        initial=ALL,
        widget=forms.RadioSelect,
    )

    def __init__(self, *args: Any, user: User, **options: Any) -> None:
        super().__init__(*args, **options)
        self.user = user
        if not user.has_perm(Capability.GATEWAYS_MANAGE):
            del self.fields["own_gateway"]
        else:
            names = ", ".join(team.name for team in user.teams.order_by("name"))
            reach = f"open to your teams ({names})" if names else "open to everyone, because you are in no team"
            help_text = f"The new gateway gets the server's name and is {reach}. You can change both later."
            self.fields["own_gateway"].help_text = help_text
            live = Count("connections", filter=Q(connections__revoked_at=None))
            people = Count("connections__user", filter=Q(connections__revoked_at=None), distinct=True)
            offered = Gateway.objects.live().annotate(connection_count=live, people_count=people)
            self.fields["gateways"].queryset = offered.order_by("name")  # type: ignore[attr-defined]

    @property
    def gateway_rows(self) -> Any:
        """The gateways to choose from, with the number of people and connections of each."""
        return self.fields["gateways"].queryset  # type: ignore[attr-defined]

    @property
    def chosen_gateways(self) -> list[str]:
        return [str(slug) for slug in self["gateways"].value() or ()]

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        if values.get("auth_type") in (AuthType.NONE, AuthType.OAUTH):
            values["secret"] = ""
        if secret := values.get("secret"):
            self._check(secret, values)
        if values.get("gateways") or values.get("own_gateway"):
            self._check_gateways(values.get("gateways", ()), values)
        return values

    def _check_gateways(self, gateways: Any, values: dict[str, Any]) -> None:
        slug = values.get("slug")
        for gateway in gateways:
            if slug and gateway.assignments.live().filter(alias=slug).exists():
                self.add_error("slug", f"Another server on {gateway.name} has the alias “{slug}”. Give another slug.")
        if not self._shares(values):
            return
        if not self.user.has_perm(Capability.IDENTITIES_MANAGE):
            who = "Only a person with Identity management can choose the gateways of a shared credential"
            self.add_error("gateways", f"{who}. Add the server without a gateway, and ask such a person to assign it.")
        elif values.get("auth_type") == AuthType.OAUTH:
            how = "Add the server without a gateway. Open the page of the server, and sign in as the shared account"
            self.add_error("gateways", f"{how}. Then assign the server.")
        elif not values.get("secret") and "secret" not in self.errors:
            self.add_error("secret", "Paste the credential shared by everybody on these gateways.")

    def _check(self, secret: str, values: dict[str, Any]) -> None:
        server = Server(auth_type=values.get("auth_type", ""), header_name=values.get("header_name", ""))
        for errors in SecretForm({"secret": secret}, server=server).errors.values():
            self.add_error("secret", list(errors))

    def accepts_credential(self) -> bool:
        """Test the credential, if one was entered. Return True if the form has no error.

        If the server refuses the credential, the form gets an error, unless `keep` is ticked.
        """
        if secret := self.cleaned_data["secret"]:
            server = Server(**self.server_fields())
            self.judge(refusal_of(server, secret), "secret", server.name)
        return not self.errors

    @staticmethod
    def _shares(values: dict[str, Any]) -> bool:
        return values.get("auth_type") != AuthType.NONE and values.get("who") == SHARED

    @property
    def scheme(self) -> IdentityScheme:
        if self.cleaned_data["auth_type"] == AuthType.NONE:
            return IdentityScheme.NONE
        return IdentityScheme.SHARED if self._shares(self.cleaned_data) else IdentityScheme.PER_USER

    def server_fields(self) -> dict[str, Any]:
        """Return the fields of the server's row."""
        extra = ("who", "secret", "keep", "gateways", "own_gateway", "tools")
        return {name: value for name, value in self.cleaned_data.items() if name not in extra}


@dataclass(frozen=True)
class ServerTrial:
    """The outcome of testing a server that is not stored yet."""

    url: str  # The first URL tried that may have an MCP endpoint, or the original URL if none may.
    outcome: Discovered | DiscoveryFailed
    with_credential: bool
    needs: Needs | None = None

    @property
    def health(self) -> dict[str, str]:
        """The outcome as JSON for the browser session.

        If the server is added without a gateway and without a credential, this outcome becomes the server's health.
        """
        error = "" if self.kind != "bad" else str(self.outcome)
        spoken = self.found.spoken if self.found else None
        return {"error": error, "era": spoken.eras if spoken else "", "evidence": spoken.evidence if spoken else ""}

    @property
    def signs_in(self) -> Needs | None:
        """`needs` if people sign in at an issuer (OAuth), otherwise None."""
        return self.needs if self.needs and self.needs.auth_type == AuthType.OAUTH else None

    @property
    def found(self) -> Discovered | None:
        return self.outcome if isinstance(self.outcome, Discovered) else None

    @property
    def kind(self) -> str:
        """The severity of the outcome: `good`, `warn` or `bad`. A server that asks for a credential is not `bad`."""
        if isinstance(self.outcome, DiscoveryFailed):
            return "warn" if self.outcome.wants_credential else "bad"
        return "good"

    @property
    def wants(self) -> str:
        """A sentence that says which credential or sign-in the server accepts, or what to do next."""
        if self.found:
            if self.with_credential:
                return "It accepts this credential."
            return "It answers without a credential."
        if not isinstance(self.outcome, DiscoveryRefused):
            return "Until the server answers, the gateway cannot find out how people sign in."
        if self.signs_in:
            return f"People sign in at {self.signs_in.issuer}."
        return (
            "Enter another credential, or add the server without one."
            if self.with_credential
            else "Choose its auth type."
        )

    @property
    def said(self) -> str:
        """The outcome as a sentence."""
        return str(self.outcome) if self.found else f"The server {self.outcome}."

    @property
    def causes(self) -> list[dict[str, str]]:
        """The most likely causes of a failure, at most three; empty if `kind` is not `bad`.

        Each cause has a `text`. It also has either `try`, a URL to test next, or `at` and `label`: the id of the form
        part to change, and the text of the link to this part.
        """
        if self.kind != "bad":
            return []
        parts = urlsplit(self.url)
        paths = {"text": "The MCP endpoint is at another path."}
        if parts.path.rstrip("/") != "/mcp":
            paths["try"] = parts._replace(path="/mcp", query="").geturl()
        else:
            paths |= {"at": "id_url", "label": "Change URL"}
        again = {"text": "The server is starting, or its network does not let the gateway in.", "try": self.url}
        if isinstance(self.outcome, NoEndpoint):
            text = "The server answers only requests that carry a credential."
            credential = {"text": text, "at": "sign-in-step", "label": "Choose sign-in"}
            return [paths, credential, again]
        if parts.scheme == "http":
            secure = {"text": "The server answers over https only.", "try": parts._replace(scheme="https").geturl()}
            return [secure, again, paths]
        host = {"text": "The host name or the port is wrong.", "at": "id_url", "label": "Change URL"}
        return [host, again, paths] if "try" in paths else [host, again]

    @property
    def shown(self) -> dict[str, Any]:
        """The outcome as JSON for the browser session, so that a form with an error can show the outcome again."""
        needs = self.signs_in
        return {
            "said": self.said,
            "kind": self.kind,
            "wants": self.wants,
            "causes": self.causes,
            "found": self.found is not None,
            "tools": self.tools,
            "tool_count": self.tool_count,
            "needs": {"problem": self.needs.problem if self.needs else ""},
            "signs_in": needs
            and {"issuer": needs.issuer, "registrations": list(needs.registrations), "scopes": list(needs.scopes)},
        }

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The server's first tools, with the effects that the server claims for them."""
        shown = self.found.tools[:SHOWN_TOOLS] if self.found else []
        return [
            {
                "name": tool.get("name", ""),
                "about": _line(tool.get("description")),
                "effect": Effect.of(tool.get("annotations")).claim,
            }
            for tool in shown
        ]

    @property
    def tool_count(self) -> int:
        return len(self.found.tools) if self.found else 0


def _line(text: Any) -> str:
    """Return the first line of a description."""
    return text.strip().partition("\n")[0][:120] if isinstance(text, str) else ""


def try_server(values: dict[str, Any], secret: str, kinds: Sequence[str] = (FeatureKind.TOOL,)) -> ServerTrial:
    """Test the server described by `values`, with `secret` if given, and list its features. Nothing is stored.

    If the URL has neither path nor query and leads to no MCP endpoint, the usual paths are tried, too (see
    `ServerTrial.url`).
    """
    asked, parts = _ask(values, secret, kinds), urlsplit(values["url"])
    if isinstance(asked.outcome, NoEndpoint) and parts.path in ("", "/") and not parts.query:
        for path in USUAL_PATHS:
            found = _ask({**values, "url": parts._replace(path=path).geturl()}, secret, kinds)
            if not isinstance(found.outcome, NoEndpoint):
                return found
    return asked


def _ask(values: dict[str, Any], secret: str, kinds: Sequence[str]) -> ServerTrial:
    server = Server(**values)
    identity = None
    if secret and server.needs_credential:
        identity = Identity(server=server, label="what was pasted", kind=server.auth_type)
        identity.seal(secret)
    try:
        return ServerTrial(server.url, discover_features(server, identity, kinds), identity is not None)
    except DiscoveryRefused as refusal:
        needs = needs_of(server) if identity is None and not is_own(server.url) else None
        return ServerTrial(server.url, refusal, identity is not None, needs)
    except DiscoveryFailed as failure:
        return ServerTrial(server.url, failure, identity is not None)


def is_own(url: str) -> bool:
    """True if this is a URL of the gateway itself, which must not be called."""
    return upstream_guard().own.has(url)


def add_server(
    form: NewServerForm,
    *,
    by: User,
    tested: dict[str, str] | None = None,  # The `ServerTrial.health` of an earlier test, for a server not asked now.
    name_is_made: bool = False,
    # The result of listing the features of all kinds with the same credential; None to ask the server.
    outcome: Discovered | DiscoveryFailed | None = None,
    gateway_name: str = "",  # The name of *A new gateway*; empty: the server's name.
) -> Server:
    """Store the server and its credential, and assign the server to the chosen gateways. Raises IntegrityError.

    If the form has neither gateways nor a credential, do not ask the server for its features.
    """
    with transaction.atomic():
        server = Server.objects.add(by=by, name_is_made=name_is_made, **form.server_fields())
        gateways = [*form.cleaned_data["gateways"], *_own_gateway(server, form, gateway_name or server.name, by)]
        identity = _identity(server, form, gateways, by)
        assigned = [_assign(server, gateway, form, identity, by) for gateway in gateways]
        if identity and not identity.is_shared:
            Connection.objects.carry(identity, by=by)
    if assigned or identity:
        outcome = outcome or _listed(server, identity)
        _store_features(server, assigned, identity, outcome, form.cleaned_data["tools"], by)
    elif tested:
        health = Health.DOWN if tested["error"] else Health.OK
        era = Era(tested["era"]) if tested["era"] else None
        server.note_health(health, tested["error"], era, tested.get("evidence", ""))
    return server


def _own_gateway(server: Server, form: NewServerForm, name: str, by: User) -> list[Gateway]:
    """Create the new gateway that the form asks for, and return it in a list; [] if the form asks for none.

    The gateway is open to the teams of the person `by`, or to everyone if this person is in no team.
    """
    if not form.cleaned_data.get("own_gateway"):
        return []
    slug = suggest(name, Gateway.objects.all(), 40) or suggest(server.slug, Gateway.objects.all(), 40)
    taken = Gateway.objects.live().filter(named(name)).exists()
    name = f"{name} ({slug})"[:80] if taken else name
    teams = list(by.teams.all())
    reach = Reach.TEAMS if teams else Reach.EVERYONE
    return [Gateway.objects.add(name=name, slug=slug, reach=reach, teams=teams, by=by)]


def _identity(server: Server, form: NewServerForm, gateways: Sequence[Gateway], by: User) -> Identity | None:
    secret = form.cleaned_data["secret"]
    if not secret:
        return None
    shared = form.scheme == IdentityScheme.SHARED
    label = "shared" if shared else by.email.partition("@")[0][:80]
    owner = None if shared else by
    identity = Identity.objects.bring(server=server, owner=owner, label=label, secret=secret, by=by)
    if shared and gateways:
        allow_identity(identity, gateways, by=by)
    return identity


def _assign(server: Server, gateway: Gateway, form: NewServerForm, identity: Identity | None, by: User) -> Assignment:
    return Assignment.objects.assign(
        gateway=gateway,
        server=server,
        alias=server.slug,
        identity_scheme=form.scheme,
        shared_identity=identity if form.scheme == IdentityScheme.SHARED else None,
        tool_policy=POLICIES[form.cleaned_data["tools"] or ALL],
        by=by,
    )


def _listed(server: Server, identity: Identity | None) -> Discovered | DiscoveryFailed:
    try:
        return discover_features(server, identity, tuple(FeatureKind))
    except DiscoveryFailed as failure:
        return failure


def _store_features(
    server: Server,
    assigned: Sequence[Assignment],
    identity: Identity | None,
    outcome: Discovered | DiscoveryFailed,
    tools: str,
    by: User,
) -> None:
    """Record whether the server listed its features, and store the listed features for each assignment.

    If the server did not list them, the gateway asks again at the first use of the server.
    """
    record_contact(server, identity, outcome)
    features = outcome.features if isinstance(outcome, Discovered) else {}
    for assignment in assigned if features else ():
        for kind, definitions in features.items():
            Feature.objects.learn(assignment, definitions, kind, identity)
        if tools == READ_ONLY:
            reading = assignment.features.filter(kind=FeatureKind.TOOL, effect=Effect.READ_ONLY, enabled=False)
            Feature.switch_all(list(reading), on=True, by=by)


# The page: choose a server by URL or tile, test it, and assign it to gateways.

PAGE = "servers/add.html"
TESTED_FIELDS = ("auth_type", "header_name", "secret", *SIGN_IN_SETTINGS)
TESTED = "tested_server"  # Session key: the outcome of testing a server before it is added.


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_MANAGE)
def add(request: AppRequest) -> HttpResponse:
    """GET: choose a server. POST with `check`, `tile`, `test` or `try`: test the server.

    POST with `program`: add this program of the runner as a server, and assign the server to no gateway. Any other
    POST: add the server that the form describes.
    """
    if request.method == "GET":
        return show(request, f"{PAGE}#tiles" if request.htmx.target == "tiles" else f"{PAGE}#flow", _choice(request))
    if {"check", "tile", "test", "try"} & request.POST.keys():
        return _asked(request)
    if "program" in request.POST:
        return _add_program(request)
    form = NewServerForm(request.POST, user=request.user)
    if form.is_valid() and form.accepts_credential():
        try:
            made = form.cleaned_data["name"] == request.POST.get("suggested") == name_of(form.cleaned_data["url"])
            tested = _tested(request, form.cleaned_data)
            server = add_server(form, by=request.user, tested=tested, name_is_made=made)
        except IntegrityError:
            form.add_error("name", TAKEN)
        else:
            request.session.pop(TESTED, None)
            return leave(request, next_page(server, form, request.user), _done(server, form))
    return show(request, f"{PAGE}#flow", _context(request, form) | _shown_before(request), status=422)


def _choice(request: AppRequest) -> dict[str, Any]:
    """Return the context of the first step: a field for the URL, and the tiles that match the search."""
    words, kind = request.GET.get("q", ""), request.GET.get("kind", "")
    context: dict[str, Any] = {"q": words, "kind": kind, "kinds": well_known.KINDS, "url": request.GET.get("url", "")}
    try:
        context["tiles"] = well_known.filter_known_servers(words, kind)
    except well_known.BadTiles as fault:
        context |= {"tiles": [], "tiles_fault": str(fault)}
    if words:
        try:
            context["registered"] = well_known.search_registry(words)
        except well_known.NoRegistry as fault:
            context["registry_fault"] = str(fault)
    if request.htmx.target != "tiles":
        context |= _programs()
    return context


def _programs() -> dict[str, Any]:
    """Return the context of *Programs*: the runner's programs, or why there are none."""
    try:
        return {"has_runner": True, "offers": programs.offers()}
    except programs.NoRunner:
        return {"has_runner": False}
    except programs.RunnerUnavailable as fault:
        return {"has_runner": True, "runner_fault": str(fault)}


def _add_program(request: AppRequest) -> HttpResponse:
    """Add a program of the runner as a server, and then contact the server.

    The server gets the program's title as its name, and is assigned to no gateway.
    """
    try:
        program = programs.list_programs().find(request.POST["program"])
    except programs.RunnerUnavailable as fault:
        return show(request, f"{PAGE}#flow", _choice(request) | {"runner_fault": str(fault)}, status=422)
    slug = suggest(program.title, Server.objects.all(), 16) or suggest(program.name, Server.objects.all(), 16)
    values = {"name": program.title, "slug": slug, "url": program.url, "auth_type": AuthType.NONE}
    form = NewServerForm(values | {"timeout_seconds": 30}, user=request.user)
    if form.is_valid():
        try:
            server = add_server(form, by=request.user)
        except IntegrityError:
            form.add_error("name", TAKEN)
        else:
            return leave(request, reverse("servers:detail", args=[server.slug]), _contacted(server, request.user))
    return show(request, f"{PAGE}#flow", _context(request, form), status=422)


def _contacted(server: Server, by: User) -> str:
    """Contact the added server; return the outcome in words."""
    try:
        tools = number_of(len(probe(server, by=by).tools), "tool")
    except DiscoveryFailed as failure:
        return f"{server.name} added, but it {failure}."
    return f"{server.name} added with {tools}. Assign it to a gateway."


def _asked(request: AppRequest) -> HttpResponse:
    """Test the server, and show the second step with the outcome and everything entered so far."""
    posted = {name: request.POST[name] for name in request.POST if name not in ("csrfmiddlewaretoken", "gateways")}
    tile = well_known.find_known_server(request.POST.get("tile", ""))
    if tile and tile.program:
        return show(request, f"{PAGE}#flow", _choice(request) | {"recipe": tile})
    if tile:
        posted |= {"url": tile.url, "name": tile.name, "auth_type": tile.takes, "header_name": tile.header}
    if "try" in posted:
        posted["url"] = posted.pop("try")
        if title := programs.title_of(posted["url"]):
            posted["name"] = title
    checked = NewServerForm(posted | {"name": "-", "slug": "x-check"}, user=request.user)
    if "url" in checked.errors or any(request.POST.get(name) for name in TESTED_FIELDS if name in checked.errors):
        return _not_asked(request, posted, checked)
    url, auth_type = checked.cleaned_data["url"], checked.cleaned_data.get("auth_type") or AuthType.NONE
    values = {
        "name": "-",
        "url": url,
        "auth_type": auth_type,
        "header_name": checked.cleaned_data.get("header_name", ""),
    }
    values |= {name: checked.cleaned_data[name] for name in SIGN_IN_SETTINGS if name in checked.cleaned_data}
    asked = try_server(values, checked.cleaned_data.get("secret", ""))
    suggested = _suggested(request, posted | {"url": asked.url}, asked)
    form = NewServerForm(initial=suggested, user=request.user)
    context = _context(request, form) | {"asked": asked, "tile": tile, "suggested": suggested["suggested"]}
    context["typed_url"] = url if url != asked.url else ""
    if asked.signs_in:
        entered = (str(values.get(name, "")) for name in ENDPOINTS[1:])
        context["redirect_uri"] = redirect_uri(asked.signs_in.issuer, *entered)
    kept = {"asked": asked.shown, "redirect_uri": context.get("redirect_uri", "")}
    request.session[TESTED] = {"url": asked.url, **asked.health, "shown": kept}
    return show(request, f"{PAGE}#flow", context)


def _not_asked(request: AppRequest, posted: dict[str, str], checked: NewServerForm) -> HttpResponse:
    """Show the errors of the fields that a test needs, and everything entered so far."""
    values = posted | {"gateways": request.POST.getlist("gateways")}
    if "url" not in checked.errors:
        form = NewServerForm(values, user=request.user)
        return show(request, f"{PAGE}#flow", _context(request, form) | _shown_before(request), status=422)
    error = {"url_error": checked.errors["url"][0]}
    if "name" not in request.POST:
        context = _choice(request) | {"url": posted.get("url", "")} | error
        return show(request, f"{PAGE}#flow", context, status=422)
    form = NewServerForm(initial=values, user=request.user)
    return show(request, f"{PAGE}#flow", _context(request, form) | error, status=422)


def _shown_before(request: AppRequest) -> dict[str, Any]:
    """Return the context that shows the last test's result; {} if the test was for another URL than the form has."""
    tested: dict[str, Any] = request.session.get(TESTED) or {}
    shown: dict[str, Any] = tested.get("shown", {})
    return shown if tested.get("url") == request.POST.get("url") else {}


def _tested(request: AppRequest, values: dict[str, Any]) -> dict[str, str] | None:
    """Return the outcome of the last test if it tested the URL in `values`; otherwise None."""
    tested = request.session.get(TESTED)
    return tested if tested and tested["url"] == values["url"] else None


def _suggested(request: AppRequest, posted: dict[str, str], asked: ServerTrial) -> dict[str, Any]:
    """Return the initial values of the form, from the entered values, the chosen tile and the test of the server."""
    values: dict[str, Any] = {
        "timeout_seconds": 30,
        "total_seconds": 600,
        "max_concurrent": 64,
        "who": OWN,
        "tools": ALL,
    }
    values |= {name: value for name, value in posted.items() if value}
    found = asked.found
    said = found.info.name.strip()[:80] if found else ""
    if said and values.get("name") == values.get("suggested"):  # The person did not enter another name.
        values.pop("name", None)
    values["suggested"] = values.get("suggested") if "name" in values else said or name_of(posted["url"])
    values.setdefault("name", values["suggested"])
    if asked.signs_in and "test" not in request.POST:
        values["auth_type"] = AuthType.OAUTH
    elif isinstance(asked.outcome, DiscoveryRefused) and values.get("auth_type", AuthType.NONE) == AuthType.NONE:
        values["auth_type"] = AuthType.BEARER
    elif found and not asked.with_credential and "test" not in request.POST:
        values["auth_type"] = AuthType.NONE
    chosen = request.POST.getlist("gateways")
    offered = NewServerForm(user=request.user).gateway_rows
    if "name" not in request.POST:
        demo = Assignment.objects.live().filter(server__url__in=BUILT_IN_URLS)
        real = list(offered.exclude(pk__in=demo.values("gateway")).values_list("slug", flat=True)[:2])
        values["own_gateway"] = not real
        chosen = real if len(real) == 1 else []
    values["gateways"] = chosen
    return values


def name_of(url: str) -> str:
    """Make a name from the host of a URL: `mcp.example.com` becomes Example."""
    host = url.partition("://")[2].partition("/")[0].partition(":")[0]
    labels = [label for label in host.split(".") if label not in ("mcp", "api", "www")]
    return labels[-2 if len(labels) > 1 else 0].capitalize() if labels and not host[-1:].isdigit() else "Server"


def _context(request: AppRequest, form: NewServerForm) -> dict[str, Any]:
    return {
        "form": form,
        "made": suggest(str(form["name"].value() or ""), Server.objects.all(), 16),
        "back": reverse("servers:list"),
        "tools": form["tools"].value() or ALL,
        "suggested": request.POST.get("suggested", ""),
        "who": form["who"].value() or OWN,
    }


def next_page(server: Server, form: NewServerForm, user: User) -> str:
    """Return the URL of the page to show after the server was added: normally the server's page.

    If each person brings an identity and `user` entered no credential, show the user's newest connection to the
    chosen gateways, if there is one, because this connection needs an identity now.
    """
    if form.scheme == IdentityScheme.PER_USER and not form.cleaned_data["secret"]:
        own = Connection.objects.own(user).live().filter(gateway__in=form.cleaned_data["gateways"])
        if first := own.order_by("-connected_at").first():
            return f"{reverse('connections:mine')}?connection={first.pk}"
    return reverse("servers:detail", args=[server.slug])


def _done(server: Server, form: NewServerForm) -> str:
    names = ", ".join(server.assignments.live().values_list("gateway__name", flat=True)[:3])
    done = f"{server.name} added" + (f" to {names}" if names else "")
    if form.cleaned_data["tools"] != READ_ONLY or Feature.objects.filter(assignment__server=server).exists():
        return done
    return f"{done}. Its tools could not be listed yet: enable them by hand" if names else done
