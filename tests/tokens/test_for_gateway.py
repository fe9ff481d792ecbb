"""The API Tokens dialog behind the key icon of a gateway."""

import pytest
from django.test import Client

from accounts.models import User
from gateways.models import Gateway
from tests import make
from tests.conftest import SignIn
from tests.tokens.rows import HTMX, secret_in, text
from tokens.models import Issued, Token

pytestmark = pytest.mark.django_db

ON_GATEWAYS = HTMX | {"HX-Current-URL": "http://testserver/gateways/"}


@pytest.fixture
def work() -> Gateway:
    return make.gateway(slug="work", name="Work")


@pytest.fixture
def mine(ana: User, work: Gateway) -> Issued:
    return make.token(make.connection(make.agent(by=ana, name="CI bot"), work, ana), name="ci-pipeline")


@pytest.mark.full
def test_it_lists_ones_own_tokens_on_this_gateway(
    ana: User, ann: User, work: Gateway, mine: Issued, sign_in: SignIn
) -> None:
    make.token(make.connection(mine.token.connection.host, make.gateway(), ana), name="elsewhere")
    make.token(make.connection(mine.token.connection.host, work, ann), name="hers")
    make.token(mine.token.connection, name="ended").token.revoke(by=ana)
    client = sign_in(ana)

    dialog = client.get("/gateways/work/tokens/", headers=ON_GATEWAYS)

    for page in ("/gateways/", "/gateways/work/"):
        assert 'action="/gateways/work/tokens/"' in text(client.get(page))
    assert [row.token.name for row in dialog.context["rows"]] == ["ci-pipeline"]
    for words in (mine.token.prefix, "CI bot", "All servers", "never used", "How to Connect"):
        assert words in text(dialog)
    assert mine.secret not in text(dialog)
    button = text(dialog).split('action="/settings/api-tokens/create"')[1].split("</form>")[0]
    assert '<input type="hidden" name="gateway" value="work">' in button


@pytest.mark.full
def test_without_tokens_it_says_so_and_offers_one_to_those_who_may_name_an_agent(
    ana: User, ann: User, work: Gateway, sign_in: SignIn
) -> None:
    dialogs = [text(sign_in(person).get("/gateways/work/tokens/")) for person in (ana, ann)]

    assert all("You have no API tokens on this gateway." in dialog for dialog in dialogs)
    assert ["Create Token" in dialog for dialog in dialogs] == [True, False]


@pytest.mark.full
def test_a_gateway_out_of_reach_does_not_exist(ann: User, sign_in: SignIn) -> None:
    closed = make.gateway(reach="teams")

    assert sign_in(ann).get(f"/gateways/{closed.slug}/tokens/").status_code == 404
    assert Client().get(f"/gateways/{closed.slug}/tokens/").status_code == 302


def test_actions_in_the_dialog_are_answered_in_it(ana: User, mine: Issued, sign_in: SignIn) -> None:
    client, token = sign_in(ana), mine.token
    answers = []
    for verb, fields in (("edit", {"name": "renamed", "expires_in_days": "", "allowed_ips": ""}), ("revoke", {})):
        asked = text(client.get(f"/tokens/{token.pk}/{verb}/", {"in": "gateway"}, headers=ON_GATEWAYS))
        assert '<input type="hidden" name="in" value="gateway">' in asked
        assert 'hx-target="#dialog"' in asked
        answers.append(client.post(f"/tokens/{token.pk}/{verb}/", {"in": "gateway", **fields}, headers=ON_GATEWAYS))

    edited, revoked = answers
    assert "renamed" in text(edited)
    assert "You have no API tokens on this gateway." in text(revoked)
    assert {(one["HX-Retarget"], one["HX-Reswap"]) for one in answers} == {("#dialog", "innerHTML")}


@pytest.mark.full
def test_a_secret_regenerated_from_the_dialog_takes_its_place(ana: User, mine: Issued, sign_in: SignIn) -> None:
    fields = {"in": "gateway", "generation": "1"}

    answer = sign_in(ana).post(f"/tokens/{mine.token.pk}/regenerate/", fields, headers=ON_GATEWAYS)

    assert Token.objects.get(pk=mine.token.pk).is_held_by(secret_in(answer) or "")
    assert "hx-swap-oob" not in text(answer)


@pytest.mark.full
def test_without_script_one_comes_back_to_the_dialogs_page(ana: User, mine: Issued, sign_in: SignIn) -> None:
    answer = sign_in(ana).post(f"/tokens/{mine.token.pk}/revoke/", {"in": "gateway"}, follow=True)

    assert answer.redirect_chain == [("/gateways/work/tokens/", 302)]
