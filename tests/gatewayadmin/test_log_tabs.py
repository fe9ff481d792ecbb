"""The log as a tab of an object's page."""

import html
import re
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from capabilities import Capability
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db


def text(response: Any) -> str:
    return str(response.content.decode())


@pytest.mark.full
def test_a_tab_shows_the_calls_of_its_thing_and_filters_them(
    ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    client = sign_in(ana)
    for kind in ("host", "gateway", "server"):
        with subtests.test(kind):
            thing: Any = make.agent(by=ana) if kind == "host" else getattr(make, kind)()
            path = f"/{kind}s/{thing.pk if kind == 'host' else thing.slug}/logs/"
            mine = make.call(**{f"{kind}_id": thing.pk}, feature_name="mine")
            make.call(**{f"{kind}_id": thing.pk}, feature_name="denied-one", outcome="denied")
            make.call(feature_name="another")

            page = text(client.get(path))
            narrowed = client.get(f"{path}?q=denied", headers={"HX-Request": "true"})

            assert "mine" in page
            assert "another" not in page
            assert f'href="{path}" aria-current="page">Logs</a>' in page
            assert f'href="/logs/{mine.uid}/?{kind}={thing.pk}"' in page
            assert f"/logs/export/?{kind}={thing.pk}&amp;format=csv" in page
            assert f'hx-get="/logs/values/tool/?tab={kind}&amp;{kind}={thing.pk}"' in page
            assert "denied-one" in text(narrowed)
            assert "mine" not in text(narrowed)
            assert narrowed["HX-Push-Url"] == f"{path}?q=denied"
            values = text(client.get(f"/logs/values/tool/?tab={kind}&{kind}={thing.pk}"))
            assert 'name=tool value="mine"' in values
            assert "another" not in values


def test_people_who_may_not_open_the_object_get_only_its_log(ana: User, sign_in: SignIn) -> None:
    agent, server = make.agent(by=ana), make.server()
    hidden = make.gateway(reach="teams")
    reader = sign_in(make.user(Capability.LOGS_READ))

    assert reader.get(f"/hosts/{agent.pk}/logs/")["Location"] == f"/logs/?host={agent.pk}"
    assert reader.get(f"/servers/{server.slug}/logs/")["Location"] == f"/logs/?server={server.pk}"
    assert reader.get(f"/gateways/{hidden.slug}/logs/")["Location"] == f"/logs/?gateway={hidden.pk}"
    assert reader.get("/gateways/none/logs/").status_code == 404
    assert sign_in(make.user(Capability.HOSTS_READ)).get(f"/hosts/{agent.pk}/logs/").status_code == 403


@pytest.mark.full
def test_each_row_of_what_was_used_leads_to_its_calls_also_when_it_has_ended(ana: User, sign_in: SignIn) -> None:
    server, gateway = make.server(auth_type="bearer"), make.gateway()
    make.assignment(gateway, server, identity_scheme="per_user")
    identity = make.identity(server, ana, label="own")
    live, ended = (make.connection(make.agent(by=ana), gateway, ana, [identity]) for _ in range(2))
    tokens = {link: make.token(link).token for link in (live, ended)}
    of_rows: dict[Any, dict[str, Any]] = {
        **{link: {"connection_id": link.pk} for link in (live, ended)},
        **{token: {"connection_id": link.pk, "token_id": token.pk} for link, token in tokens.items()},
        identity: {"server_id": server.pk, "identity_id": identity.pk, "identity_label": "own"},
    }
    for row, fields in of_rows.items():
        type(row)._default_manager.filter(pk=row.pk).update(last_used_at=timezone.now())
        make.call(feature_name=str(row.pk), **fields)
    ended.revoke(by=ana)
    client = sign_in(ana)

    def led_to(path: str, row: str) -> set[str]:
        """Follow the row's link to the log, and return the feature names of the calls listed there."""
        of_row = text(client.get(path)).partition(f'id="{row}"')[2].partition("</tr>")[0]
        links = re.findall(r'href="(/logs/\?[^"]+)"', of_row)
        assert links, row
        return {call.feature_name for call in client.get(html.unescape(links[0])).context["page"].rows}

    for link, status in ((live, "active"), (ended, "revoked")):
        token = tokens[link]
        assert led_to(f"/settings/api-tokens?status={status}", f"token-{token.pk}") == {str(token.pk)}
        for path in (f"/hosts/{link.host_id}/connections/", "/settings/mcp-connections?type=all"):
            assert led_to(path, f"connection-{link.pk}") == {str(link.pk), str(token.pk)}
    assert led_to("/settings/identities", f"identity-{identity.pk}") == {str(identity.pk)}
