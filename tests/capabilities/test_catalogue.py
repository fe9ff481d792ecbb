"""One enum lists the capabilities that roles can have."""

import pytest
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse

from accounts.models import Role, User
from capabilities import Can, Capability, CapabilityRequired, requires
from capabilities.catalogue import BUILT_IN
from tests import make

pytestmark = pytest.mark.django_db


def test_a_user_may_what_the_role_holds_whatever_its_name_and_nothing_when_deactivated() -> None:
    viv = make.user(Capability.LOGS_READ, Capability.HOSTS_READ)
    gone, impostor = make.user(*Capability, is_active=False), make.user()
    impostor.role = Role.objects.create(name="Administrator of nothing")
    impostor.save()

    def held(user: User) -> set[Capability]:
        return {capability for capability in Capability if user.has_perm(capability)}

    assert held(viv) == {Capability.LOGS_READ, Capability.HOSTS_READ}
    assert held(gone) == held(impostor) == set()


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
def test_a_role_that_only_looks_like_a_built_in_one_gets_no_capabilities() -> None:
    Role.objects.all().delete()
    own = Role.objects.create(name="\N{LATIN SMALL LETTER LONG S}uper admin")

    Role.objects.make_built_in()

    assert not own.permissions.exists()


@pytest.mark.full
def test_tests_begin_with_the_built_in_roles_as_a_workspace_does() -> None:
    def held() -> dict[str, tuple[bool, frozenset[Capability]]]:
        return {each.name: (each.locked, each.capabilities) for each in Role.objects.with_capabilities()}

    Role.objects.make_built_in()
    of_a_workspace = held()
    Role.objects.all().delete()

    make.built_in_roles()

    assert held() == of_a_workspace


@requires(Capability.HOSTS_TOGGLE, Capability.HOSTS_READ)
def guarded(request: HttpRequest) -> HttpResponse:
    return HttpResponse("in")


def test_a_guarded_view_opens_to_any_one_of_its_capabilities_and_names_the_missing_one() -> None:
    request = HttpRequest()
    request.user = make.user(Capability.HOSTS_READ)
    assert guarded(request).content == b"in"

    request.user = make.user(Capability.LOGS_READ)
    with pytest.raises(CapabilityRequired, match="hosts:toggle") as refusal:
        guarded(request)
    assert isinstance(refusal.value, PermissionDenied)
    assert refusal.value.capability is Capability.HOSTS_TOGGLE


def test_a_misspelt_capability_is_a_failing_page() -> None:
    with pytest.raises(LookupError, match="HOSTS_TOGLE"):
        Can(make.user()).hosts_togle  # noqa: B018  (asking is the act)
