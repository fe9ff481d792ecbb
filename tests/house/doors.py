"""Every page of the site: its methods, its access rule, and a URL with an object of the test world."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from typing import Any
from uuid import uuid4

from allauth.account.internal.userkit import user_id_to_str
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import transaction
from django.test import Client, RequestFactory
from django.urls import URLPattern, reverse
from django.utils import timezone

from accounts.models import ApiKey, User
from attention.models import Channel
from capabilities import Capability
from capabilities.catalogue import including
from gateways.models import Assignment
from hosts.models import Host
from oauth.models import AuthorizeRequest
from servers.models import Identity
from tests import make
from tests.accounts.soft_key import added
from tests.api.world import World, build, holder
from tests.house.test_routes import OWN, PROTOCOL, PUBLIC, routes
from tests.undone import undone

COOKIE = settings.SESSION_COOKIE_NAME
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

ALL = frozenset(Capability)
DAY = 86400
KEEPER = frozenset({Capability.SERVERS_MANAGE})  # Manages shared identities.

type Wanted = list[frozenset[Capability]]


@dataclass(frozen=True)
class Door:
    """One method of one page."""

    name: str
    method: str
    path: str
    view: Any

    def __str__(self) -> str:
        return f"{self.method}-{self.name}"

    @property
    def wanted(self) -> Wanted:
        """Return sets of capabilities; a person needs at least one of each set, so an empty set admits nobody."""
        rule = getattr(self.view, "rule", "")
        if isinstance(rule, tuple):
            changing = getattr(self.view, "change_rule", ()) if self.method != "GET" else ()
            return [*rule, *changing]
        match getattr(self.view, "others", None):
            case None:
                return []
            case tuple() as any_of:
                return [frozenset(any_of)]
            case frozenset() as all_of:
                return [frozenset({one}) for one in all_of]
            case one:
                return [frozenset({one})]

    @property
    def is_for_owners(self) -> bool:
        """Return True if the owner of the page's object needs no capability."""
        return getattr(self.view, "others", None) is not None

    @property
    def is_open(self) -> bool:
        """Return True if every signed-in user may open the page."""
        return not self.wanted

    @property
    def knocking(self) -> dict[frozenset[Capability], bool]:
        """Map the capabilities of each test user to whether that user may open the page."""
        named = frozenset[Capability]().union(*self.wanted)
        people = dict.fromkeys([frozenset(), ALL - including(named)], self.is_open)
        for chosen in product(*self.wanted):
            people[frozenset(chosen)] = True
        for one_of in self.wanted if len(self.wanted) > 1 else ():
            people[ALL - including(one_of)] = False
        return people


def doors() -> Iterator[Door]:
    """Yield every page with each method; the API and pages for signed-out visitors are tested elsewhere."""
    for name, route in routes():
        if not name.startswith("api:") and name not in PUBLIC | OWN | PROTOCOL:
            for method in methods(route):
                yield Door(name, method, str(route.pattern), route.callback)


def methods(route: URLPattern) -> list[str]:
    """Return the methods that a page allows."""
    if shaped := getattr(route.callback, "view_class", None):
        return [one for one in METHODS if hasattr(shaped, one.lower())]
    answer = route.callback(RequestFactory().generic("TRACE", "/"))
    assert answer.status_code == 405, f"{route.name} does not say which methods it knows"
    return [one for one in METHODS if one in answer["Allow"].split(", ")]


# Placeholders of addresses, by prefix; a page at a new address needs an entry here.
PLACES = {
    "access/gateways/": "askable_slug",
    "access/requests/": "access_request",
    "access/reviews/": "access_review",
    "assignments/": "assignment",
    "connect/<uuid:pk>/": "flow",
    "connections/": "connection",
    "features/": "tool",
    "gateways/find/": "gateway",
    "gateways/<slug:slug>/": "gateway_slug",
    "hosts/": "host",
    "incident/connections/": "connection",
    "incident/hosts/": "host",
    "incident/people/": "person",
    "incident/servers/": "server",
    "incident/tokens/": "token",
    "identities/<uuid:pk>/gateways/": "shared_identity",
    "keys/": "security_key",
    "identities/": "identity",
    "approvals/allowed/": "allowance",
    "approvals/": "hold",
    "logs/sessions/": "client_session",
    "logs/views/": "saved_view",
    "logs/": "call",
    "settings/calls/": "own_call",
    "people/roles/": "role",
    "people/teams/": "team",
    "people/": "person",
    "servers/find/": "server",
    "servers/<slug:slug>/": "server_slug",
    "rules/": "rule",
    "settings/admin-events/": "event",
    "settings/api-keys/": "api_key",
    "settings/directory/": "directory_address",
    "settings/notifications/": "channel",
    "settings/provisioning/": "provisioning_key",
    "settings/sessions/": "session",
    "settings/sinks/": "sink",
    "tokens/": "token",
    "tool-grants/": "tool_grant",
    "tool-sets/": "tool_set",
    "tools/": "tool",
}

# Pages that exist only for some objects of a kind: the placeholder to use instead.
INSTEAD = {
    "gateways:withdraw_request": "own_access_request",
    "oauth:registered": "app",
    "servers:authenticate": "oauth_server_slug",
    "servers:client": "oauth_server_slug",
}

# Fields without which the page has nothing to do.
FIELDS = {
    "accounts:ask_for": "capability=api-tokens:manage",
    "accounts:decline_request": "capability=api-tokens:manage",
}


class Holders:
    """Signed-in people, one for each set of capabilities that a test asks for; created when first needed."""

    def __init__(self) -> None:
        self._sessions: dict[frozenset[Capability], str] = {}

    def session(self, capabilities: frozenset[Capability]) -> str:
        """Return the session key of a person with exactly these capabilities."""
        session = self._sessions.get(capabilities, "")
        if not Session.objects.filter(pk=session).exists():  # Not created yet, or in a test that was rolled back.
            session = self._sessions[capabilities] = session_of(holder(*capabilities))
        return session


class Site:
    """A test world of rows, and browsers of people with any set of capabilities."""

    def __init__(self) -> None:
        self.world: World = build()
        self._holders = Holders()
        self.enrolling = Host.objects.add_agent(name="Takes enrolment", by=self.world.owner)
        self.enrolling.set_enrolment(True, by=self.world.owner)
        self._owner = session_of(self.world.owner)
        self.things = self._things()

    def knock(self, door: Door, client: Client) -> Any:
        """Request the door's page as `client`, and return the response; all changes are rolled back."""
        with undone():
            kind, fields, address = "application/x-www-form-urlencoded", FIELDS.get(door.name, ""), self.address(door)
            if fields and door.method == "GET":
                address = f"{address}?{fields}"
            answer = client.generic(door.method, address, fields, content_type=kind)
            if answer.streaming:
                b"".join(answer)
        return answer

    def address(self, door: Door) -> str:
        start = next((start for start in PLACES if door.path.startswith(start)), "")
        kwargs = {
            "assignment": self.things["assignment"],
            "host": self.things["host"],
            "name": "gateway",
            "file": "cursor",
            "group": "tokens",
            "key": "0" * 32,
            "user_pk": self.world.owner.pk,
        }
        if start:
            kwargs |= dict.fromkeys(("pk", "slug", "uid"), self.things[INSTEAD.get(door.name, PLACES[start])])
        taken = {name: value for name, value in kwargs.items() if f":{name}>" in door.path}
        assert door.path.count("<") == len(taken), f"{door.name} has no place in PLACES"
        query = f"?host={self.enrolling.pk}" if door.name == "oauth:connect" else ""
        return reverse(door.name, kwargs=taken) + query

    def holding(self, capabilities: frozenset[Capability]) -> Client:
        """Return the browser of a user with exactly these capabilities."""
        return browser(self._holders.session(capabilities))

    def owning(self) -> Client:
        """Return the browser of the user who owns all objects that have an owner."""
        return browser(self._owner)

    def _things(self) -> dict[str, Any]:
        known = self.world.addresses
        assignment = Assignment.objects.get(gateway__slug=known["gateway"]["slug"])
        flow = AuthorizeRequest.objects.get(pk=self._flow())
        flow.gateway = assignment.gateway
        flow.save()
        oauth = make.server(auth_type="oauth")
        make.assignment(make.gateway(), oauth, identity_scheme="per_user")
        own = UserSession.objects.create(user=self.world.owner, session_key=uuid4().hex, ip="127.0.0.1", user_agent="")
        return {
            "access_request": known["accessrequest"]["pk"],
            "access_review": known["accessreview"]["pk"],
            "own_access_request": known["accessrequest-withdraw"]["pk"],
            "askable_slug": known["askable"]["slug"],
            "api_key": self._api_key().pk,
            "app": known["host-approve"]["pk"],
            "channel": channel_of(self.world.owner).pk,
            "assignment": assignment.pk,
            "directory_address": known["directoryaddress"]["pk"],
            "flow": flow.pk,
            "gateway": assignment.gateway_id,
            "shared_identity": known["identity-gateways"]["pk"],
            "gateway_slug": assignment.gateway.slug,
            "server": assignment.server_id,
            "server_slug": assignment.server.slug,
            "oauth_server_slug": oauth.slug,
            "saved_view": known["savedview-detail"]["pk"],
            "security_key": added(self.world.owner).pk,
            "session": own.pk,
            "own_call": make.call(user_id=self.world.owner.pk).uid,
            "client_session": make.opening_call(user_id=self.world.owner.pk).uid,
            "person": known["user"]["pk"],
            "provisioning_key": known["provisioning-key"]["pk"],
            "tool_grant": known["toolgrant-detail"]["pk"],
            "tool_set": known["toolset-detail"]["pk"],
            "allowance": known["allowance"]["pk"],
            "hold": known["hold"]["pk"],
            **{name: known[name]["pk"] for name in ("connection", "host", "identity", "rule", "sink", "token")},
            **{name: known[f"{name}-detail"]["pk"] for name in ("call", "event", "role", "team", "tool")},
        }

    def _api_key(self) -> ApiKey:
        ends = timezone.now() + timedelta(days=7)
        held = {"prefix": "gwp_12345678", "digest": b"", "key_id": ""}
        return ApiKey.objects.create(user=self.world.owner, name="mine", expires_at=ends, **held)

    def _flow(self) -> str:
        """Start an authorize flow in the owner's browser; return its id."""
        return str(self.owning().get(f"/connect/?host={self.enrolling.pk}")["Location"].split("/")[2])

    @contextmanager
    def with_shared_identity(self) -> Iterator[None]:
        """Replace the world's identity by a shared one, without an owner, until the block ends."""
        own = self.things["identity"]
        server = Identity.objects.get(pk=own).server
        with transaction.atomic():
            shared = Identity.objects.bring(server=server, owner=None, label="Shared", secret="s3cret", by=None)
            self.things["identity"] = shared.pk
            yield
            self.things["identity"] = own
            transaction.set_rollback(True)


def channel_of(owner: User) -> Channel:
    """Create a notification channel of this person."""
    address = "https://93.184.216.34/hook"
    return Channel.objects.add(by=owner, kind="slack", for_workspace=False, address=address)


def session_of(user: User) -> str:
    """Return the key of a session in which `user` signed in, confirmed the password and has a second factor.

    The confirmation lasts a day, because many tests share the session, and a usual confirmation would expire.
    """
    Authenticator.objects.create(user=user, type=Authenticator.Type.TOTP, data={"secret": ""})
    client = Client()
    client.force_login(user)
    session = client.session
    typed = {"method": "password", "at": time.time() + DAY, "reauthenticated": True}
    session["account_authentication_methods"] = [typed]
    session["account_authentication_methods_user"] = user_id_to_str(user)
    session.save()
    return client.cookies[COOKIE].value


def browser(session: str) -> Client:
    """Return a browser with this session."""
    client = Client()
    client.cookies[COOKIE] = session
    return client
