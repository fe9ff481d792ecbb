"""The enum, the permissions of the models and the built-in roles agree."""

from pathlib import Path

from django.apps import apps

from capabilities import Capability
from capabilities.catalogue import BUILT_IN, SUPER_ADMIN
from gatewayadmin.config.checks import every_capability_is_a_permission, permissions_of
from tests.workspace import ROOT


def test_every_capability_is_a_permission() -> None:
    assert every_capability_is_a_permission() == []


def test_every_permission_of_our_own_is_a_capability() -> None:
    ours = {path.parent.name for path in Path(ROOT).glob("*/models*")}
    made_up = set()
    for model in apps.get_models():
        if model._meta.app_label in ours:
            declared = {f"{model._meta.app_label}.{codename}" for codename, _ in model._meta.permissions}
            assert declared <= permissions_of(model)
            made_up |= declared

    assert made_up <= set(Capability)


def test_super_admin_holds_everything() -> None:
    assert SUPER_ADMIN.capabilities == frozenset(Capability)
    assert [role.name for role in BUILT_IN if role.locked] == ["Super admin"]
