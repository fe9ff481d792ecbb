"""One enum lists the capabilities that roles can have."""

import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse

from accounts.models import Role, permissions_of
from capabilities import Can, Capability, CapabilityRequired, requires
from capabilities.catalogue import BUILT_IN, MEMBER
from tests import make

pytestmark = pytest.mark.django_db


def test_every_capability_is_a_permission_of_its_own() -> None:
    assert permissions_of(Capability).count() == len(Capability) == 32
    assert len({capability.slug for capability in Capability}) == len(Capability)


def test_every_custom_permission_belongs_to_a_capability() -> None:
    ours = {
        "accounts",
        "approvals",
        "auditlog",
        "connections",
        "gateways",
        "hosts",
        "oauth",
        "rules",
        "scim",
        "servers",
        "sinks",
        "tokens",
    }
    native = ("add_", "change_", "delete_", "view_")
    rows = Permission.objects.filter(content_type__app_label__in=ours).values_list(
        "content_type__app_label", "codename"
    )
    custom = {f"{app_label}.{codename}" for app_label, codename in rows if not codename.startswith(native)}

    assert custom <= set(Capability)


def test_a_capability_knows_its_slug_and_label() -> None:
    assert Capability.MCP_CONNECTIONS_REVOKE.slug == "api-keys:revoke"
    assert Capability.MCP_CONNECTIONS_REVOKE.label == "Revoke connections and regenerate API keys"
    assert Capability.MCP_CONNECTIONS_REVOKE.value == "connections.revoke_connection"


def test_a_user_may_what_the_role_holds_and_nothing_else() -> None:
    viv = make.user(Capability.LOGS_READ, Capability.HOSTS_READ)

    assert {capability for capability in Capability if viv.has_perm(capability)} == {
        Capability.LOGS_READ,
        Capability.HOSTS_READ,
    }


def test_the_name_of_a_role_gives_nothing() -> None:
    impostor = make.user()
    impostor.role = Role.objects.create(name="Administrator of nothing")
    impostor.save()

    assert not any(impostor.has_perm(capability) for capability in Capability)


def test_a_deactivated_user_may_nothing() -> None:
    gone = make.user(*Capability, is_active=False)

    assert not gone.has_perm(Capability.LOGS_READ)


@pytest.mark.full
def test_the_built_in_roles_are_made_once_and_the_locked_one_is_healed() -> None:
    Role.objects.make_built_in()
    for name in ("Super admin", "Member"):
        Role.objects.get(name=name).permissions.clear()

    Role.objects.make_built_in()

    assert Role.objects.get(name="Super admin").permissions.count() == len(Capability)
    assert not Role.objects.get(name="Member").permissions.exists()
    assert set(Role.objects.values_list("name", flat=True)) >= {built_in.name for built_in in BUILT_IN}


@pytest.mark.full
def test_tests_begin_with_the_built_in_roles_as_a_workspace_does() -> None:
    def held() -> dict[str, tuple[bool, frozenset[Capability]]]:
        return {each.name: (each.locked, each.capabilities) for each in Role.objects.with_capabilities()}

    Role.objects.make_built_in()
    of_a_workspace = held()
    Role.objects.all().delete()

    make.built_in_roles()

    assert held() == of_a_workspace


def test_a_member_may_connect_and_look_at_apps() -> None:
    assert MEMBER.capabilities == {Capability.OAUTH_CONNECT, Capability.HOSTS_READ}


@requires(Capability.HOSTS_TOGGLE, Capability.HOSTS_READ)
def guarded(request: HttpRequest) -> HttpResponse:
    return HttpResponse("in")


def test_a_guarded_view_opens_to_any_one_of_its_capabilities() -> None:
    request = HttpRequest()
    request.user = make.user(Capability.HOSTS_READ)

    assert guarded(request).content == b"in"


def test_a_guarded_view_names_the_capability_that_is_missing() -> None:
    request = HttpRequest()
    request.user = make.user(Capability.LOGS_READ)

    with pytest.raises(CapabilityRequired, match="hosts:toggle") as refusal:
        guarded(request)
    assert isinstance(refusal.value, PermissionDenied)
    assert refusal.value.capability is Capability.HOSTS_TOGGLE


def test_a_misspelt_capability_is_a_failing_page() -> None:
    with pytest.raises(LookupError, match="HOSTS_TOGLE"):
        Can(make.user()).hosts_togle  # noqa: B018  (asking is the act)
