"""The Django admin requires the product's own sign-in."""

import pytest
from django.test import Client

from tests import make

pytestmark = pytest.mark.django_db


def browser(*, is_staff: bool) -> Client:
    client = Client()
    client.force_login(make.user(is_staff=is_staff))
    return client


def test_signing_in_and_changing_the_password_are_the_products_own_pages() -> None:
    for path in ("/admin/", "/admin/login/?next=/admin/"):
        assert Client().get(path, follow=True).redirect_chain[-1][0].startswith("/accounts/login/?next=/admin/")
    assert browser(is_staff=False).get("/admin/", follow=True).status_code == 403
    assert browser(is_staff=True).get("/admin/password_change/")["Location"] == "/accounts/password/change/"


def test_a_password_alone_opens_nothing() -> None:
    """Django's own admin login would lack the second factor, the rate limits and the log."""
    owner = make.user(is_staff=True)
    form = {"username": owner.email, "password": make.PASSWORD}

    assert "_auth_user_id" not in (stranger := Client()).post("/admin/login/", form).wsgi_request.session
    assert stranger.get("/admin/").status_code == 302
    staff = browser(is_staff=True)
    before = staff.session["_auth_user_id"]
    staff.post("/admin/login/", form)
    assert staff.session["_auth_user_id"] == before
