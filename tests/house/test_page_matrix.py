"""Every page opens only to people whom its rule admits.

Each page is requested by an anonymous visitor, by the owner of its object, and by people who have no capabilities,
only the needed ones, or all but those. The cases are generated from the rules that the views declare. A page without a
rule fails. So does a page whose URL needs an object and has no entry in `doors.PLACES`. tests/api/test_matrix.py does
the same for the API.
"""

import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from django.db import transaction
from django.test import Client, override_settings
from django.urls import URLPattern, reverse

from capabilities import Capability
from gatewayadmin.admin.base import site as staff_site
from servers import programs
from tests.cases import sampled
from tests.house.doors import ALL, KEEPER, Door, Site, doors
from tests.house.test_routes import OWN, PROTOCOL, PUBLIC, routes
from wire.runner import Runner

pytestmark = pytest.mark.django_db

# A moved URL redirects every signed-in user, which reveals nothing about the object.
DOORS = [door for door in doors() if door.name != "gateways:tool"]
PAGES: dict[str, list[Door]] = {door.name: [other for other in DOORS if other.name == door.name] for door in DOORS}

ENTERED, REFUSED, ASKED_WHO = "entered", "refused", "asked to sign in"


@pytest.fixture(scope="module")
def site(django_db_setup: None, django_db_blocker: Any) -> Iterator[Site]:
    """Create the objects for all tests of this module. Requests do not change them.

    The servers are programs of a runner that does not answer.
    """
    is_program = patch.object(programs, "program_name", return_value="time")
    has_runner = override_settings(RUNNER=Runner("http://127.0.0.1:9", "secret"))
    with django_db_blocker.unblock(), transaction.atomic(), is_program, has_runner:
        yield Site()
        transaction.set_rollback(True)


def seen(response: Any) -> str:
    """Return the effect of a response on the visitor: entered, refused, or asked to sign in."""
    if response.status_code == 302:
        # This page redirects people who have a password to the password question.
        is_for_others = response.wsgi_request.path == "/accounts/organisation/confirm/"
        assert is_for_others or not re.search("reauthenticate|again", response["Location"])
        return ASKED_WHO if response["Location"].startswith("/accounts/login/?next=") else ENTERED
    assert response.status_code in (200, 400, 403, 404, 422), response.status_code
    return REFUSED if response.status_code in (403, 404) else ENTERED


@pytest.mark.parametrize("step", sampled(40))
def test_a_page_opens_to_whom_its_rule_names(site: Site, step: int, subtests: pytest.Subtests) -> None:
    """A user may open the page only with the declared capabilities; without a CSRF token, POSTs change nothing."""
    for door in DOORS[::step]:
        with subtests.test(str(door)):
            people = {told(held): site.holding(held) for held in door.knocking}
            expected = {told(held): ENTERED if opens else REFUSED for held, opens in door.knocking.items()}
            people["nobody"], expected["nobody"] = Client(), ASKED_WHO
            if door.is_for_owners:
                people["owner"], expected["owner"] = site.owning(), ENTERED

            assert {who: seen(site.knock(door, client)) for who, client in people.items()} == expected
            assert door.method == "GET" or stopped_by_csrf(site.knock(door, without_csrf(door, site)))


def without_csrf(door: Door, site: Site) -> Client:
    """Return the browser of a user who may open the page; the browser sends no CSRF token."""
    client = site.owning() if door.is_for_owners else site.holding(ALL)
    client.handler.enforce_csrf_checks = True
    return client


ANSWERS = frozenset({Capability.IDENTITIES_MANAGE})
IDENTITIES = [door for door in DOORS if door.path.startswith("identities/")]


@pytest.mark.full
def test_a_shared_identity_is_changed_by_who_manages_servers_and_placed_by_who_manages_identities(
    site: Site, subtests: pytest.Subtests
) -> None:
    with site.with_shared_identity():
        for door in IDENTITIES:
            keeper = ANSWERS if door.path.endswith(("confirm/", "gateways/")) else KEEPER
            with subtests.test(str(door)):
                assert seen(site.knock(door, site.holding(keeper))) == ENTERED
                assert seen(site.knock(door, site.holding(ALL - keeper))) == REFUSED
                assert seen(site.knock(door, site.owning())) == REFUSED  # The owner of another object.


def told(held: frozenset[Capability]) -> str:
    without = sorted(one.name for one in ALL - held)
    return f"all but {without}" if len(without) < len(held) else str(sorted(one.name for one in held))


def stopped_by_csrf(answer: Any) -> bool:
    return answer.status_code == 403 and b"open for too long" in answer.content


# Statuses for signed-out visitors, on pages that serve sign-in or programs and so declare no rule.
STRANGERS = {
    "directory:servers": 404,
    "directory:version": 404,
    "directory:versions": 404,
    "scim:endpoint": 401,
    "servers:client_document": 200,
    "account_login": 200,
    "account_logout": 302,
    "account_signup": 200,
    "account_inactive": 200,
    "account_reset_password": 200,
    "account_reset_password_done": 200,
    "account_reset_password_from_key": 200,
    "account_reset_password_from_key_done": 200,
    "accounts:invitation": 410,
    "accounts:join": 410,
    "help": 302,
    "help_file": 302,
    "help_page": 302,
    "help_source": 302,
    "llms": 302,
    "sso:begin": 405,
    "sso:callback": 404,
    "sso:backchannel_logout": 405,
    "sso:saml_answered": 404,
    "sso:saml_consumer": 405,
    "sso:saml_metadata": 404,
    "mfa_authenticate": 302,
    "account_change_password": 302,
    "account_reauthenticate": 302,
    "mfa_reauthenticate": 302,
    "mfa_reauthenticate_webauthn": 302,
    "staff_password": 302,
    "oauth2_provider:authorize": 400,
    "oauth2_provider:dcr-register": 405,
    "oauth2_provider:dcr-register-management": 401,
    "oauth2_provider:resource-metadata": 200,
    "oauth2_provider:revoke-token": 405,
    "oauth2_provider:server-metadata": 200,
    "oauth2_provider:token": 405,
}
# Programs post here without opening a page first; each sends its own credential, or needs none.
NO_COOKIE = {
    "api:nothing",
    "oauth2_provider:dcr-register",
    "oauth2_provider:dcr-register-management",
    "oauth2_provider:revoke-token",
    "oauth2_provider:token",
    "scim:endpoint",
    "sso:backchannel_logout",
    "sso:saml_consumer",
}
OTHERS = [(name, route) for name, route in routes() if name in PUBLIC | OWN | PROTOCOL]


def taken(route: URLPattern, values: dict[str, Any]) -> dict[str, Any]:
    """Return the items of `values` that the route's address needs."""
    return {name: value for name, value in values.items() if re.search(rf"[<:]{name}>", str(route.pattern))}


def address(site: Site, name: str, route: URLPattern) -> str:
    values = {
        "slug": site.things["gateway_slug"],
        "client_id": "nobody",
        "uidb36": "1",
        "key": "no-key",
        "path": "concepts",
        "token": "unknown",
        "name": "localhost/open",
        "version": "latest",
    }
    return reverse(name, kwargs=taken(route, values))


def test_strangers_find_what_signing_in_takes_and_what_programs_need(site: Site) -> None:
    found = {name: Client().get(address(site, name, route)).status_code for name, route in OTHERS}

    assert found == {name: STRANGERS[name] for name, _ in OTHERS}


def test_only_programs_post_without_csrf(site: Site) -> None:
    client = site.holding(ALL)
    client.handler.enforce_csrf_checks = True

    stopped = {name for name, route in OTHERS if stopped_by_csrf(client.post(address(site, name, route)))}

    assert stopped == {name for name, _ in OTHERS} - NO_COOKIE


def test_csrf_is_asked_for_everywhere_but_where_programs_post() -> None:
    """Django does not check REST views: they check the CSRF token of requests with a session themselves."""
    exempt = {name for name, route in routes() if getattr(route.callback, "csrf_exempt", False)}

    assert {name for name in exempt if not name.startswith("api:") or name == "api:nothing"} == NO_COOKIE


def admin_pages() -> Iterator[str]:
    """Yield the address of every page of the Django admin."""
    for entry in staff_site.urls[0]:
        for route in [entry] if isinstance(entry, URLPattern) else entry.url_patterns:
            if isinstance(route, URLPattern) and route.name:
                first = next(iter(staff_site._registry))._meta.app_label
                known = {"object_id": "1", "app_label": first, "content_type_id": 1}
                yield reverse(f"admin:{route.name}", kwargs=taken(route, known))


@pytest.mark.parametrize("step", sampled(8))
def test_the_django_admin_opens_to_staff_alone(site: Site, step: int) -> None:
    everything = site.holding(ALL)
    asked_who = ("/admin/login/?next=", "/accounts/login/?next=")

    for path in sorted(set(admin_pages()) - {"/admin/login/", "/admin/password_change/"})[::step]:
        assert Client().get(path)["Location"].startswith(asked_who), path
        assert everything.get(path, follow=True).status_code == 403, path
