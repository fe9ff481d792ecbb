"""Operator commands: rescue and password_link work; Django's own account commands are refused."""

import io
import re
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import Client

from accounts.models import Role, User
from auditlog.models import Event
from capabilities.catalogue import MEMBER
from tests import make

pytestmark = pytest.mark.django_db


def run(name: str, *arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command(name, *arguments, stdout=out, **options)
    return out.getvalue()


def choose(printed: str, password: str) -> None:
    """Follow the printed link and set a password."""
    link = re.search(r"http\S+", printed)
    assert link
    client = Client()
    form = client.get(link[0].removeprefix(settings.PUBLIC_URL), follow=True).redirect_chain[-1][0]
    client.post(form, {"display_name": "Bo", "password1": password, "password2": password})


@pytest.mark.full
def test_a_rescue_makes_an_owner_of_whoever_it_names() -> None:
    Role.objects.make_built_in()
    bo = make.user(email="bo@example.com", is_active=False)
    bo.give_role(Role.objects.get(name=MEMBER.name), by=None)

    said = run("rescue", "BO@example.com")

    bo = User.objects.get(pk=bo.pk)
    assert bo.is_owner
    assert "bo@example.com is an active Super admin now (before: Member, deactivated)." in said
    assert "http" not in said
    event = Event.objects.get(action="user.rescued")
    assert event.changes == {"role": ["Member", "Super admin"], "is_active": [False, True]}
    assert (event.target_id, event.actor_id, event.via) == (str(bo.pk), None, "system")


def test_a_rescue_lets_in_who_lost_password_and_second_factor() -> None:
    bo = make.user(email="bo@example.com")
    Authenticator.objects.create(user=bo, type=Authenticator.Type.TOTP, data={"secret": ""})

    said = run("rescue", "bo@example.com", "--link", "--without-second-factor", "--staff")
    choose(said, "another horse battery")

    browser = Client()
    browser.post("/accounts/login/", {"login": "bo@example.com", "password": "another horse battery"})
    assert browser.get("/people/").status_code == 200
    assert browser.get("/admin/").status_code == 200
    assert "second factor was removed" in said


def test_a_rescue_makes_a_person_only_when_told_to() -> None:
    with pytest.raises(CommandError, match=r"There is no person new@example\.com"):
        run("rescue", "new@example.com")
    with pytest.raises(CommandError, match="nonsense is not an e-mail address"):
        run("rescue", "nonsense", "--create")
    assert not User.objects.exists()

    choose(run("rescue", "new@example.com", "--create"), "another horse battery")

    assert User.objects.get(email="new@example.com").is_owner
    assert list(Event.objects.filter(via="system").values_list("action", flat=True).order_by("id"))[:2] == [
        "user.created",
        "user.rescued",
    ]


def test_a_link_to_choose_a_password_is_printed_and_changes_no_rights() -> None:
    bo = make.user(email="bo@example.com")
    make.user(email="gone@example.com", is_active=False)
    for email, refusal in (("new@example.com", "There is no person"), ("gone@example.com", "Only active people")):
        with pytest.raises(CommandError, match=refusal):
            run("password_link", email)

    said = run("password_link", "bo@example.com")
    choose(said, "another horse battery")

    after = User.objects.get(pk=bo.pk)
    assert after.check_password("another horse battery")
    assert after.role_id == bo.role_id
    assert "once, for an hour" in said
    assert Event.objects.filter(action="user.password_link_made", target_id=str(bo.pk)).count() == 1


def test_djangos_own_account_commands_are_refused_with_an_alternative() -> None:
    for command, instead in (("createsuperuser", "rescue"), ("changepassword", "password_link")):
        with pytest.raises(CommandError, match=f"manage.py {instead} EMAIL"):
            run(command)
    assert not User.objects.exists()
