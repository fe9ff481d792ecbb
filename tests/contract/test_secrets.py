"""Secrets that people entered are never shown. Secrets that the gateway issued are shown once, to their owner."""

import json
import secrets
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.contract.running import Workspace
from tests.contract.servers import Server
from tests.contract.web import Browser
from tests.contract.world import Place, new_person, new_server, new_token, results, role_of, unique

pytestmark = pytest.mark.full


def everything(browser: Browser, *paths: str) -> Iterator[str]:
    """Yield each row of the REST lists at `paths`, the full object of each row, and recent admin events."""
    for path in paths:
        for row in results(browser, path):
            yield json.dumps(row)
            yield browser.http.get(f"/api{path}/{row.get('slug') or row['id']}").text
    yield browser.http.get("/api/admin-events", params={"page_size": 200}).text
    yield browser.http.get("/settings/admin-events/").text


def test_entered_secrets_are_in_no_answer_and_in_no_event(workspace: Workspace, server: Server) -> None:
    owner, made = workspace.owner, [secrets.token_urlsafe(36) for _ in range(5)]
    row = new_server(owner, server, auth_type="bearer")
    body = {"server_id": row["id"], "label": unique("service"), "secret": made[0], "shared": True}
    identity = owner.post("/identities", **body)
    owner.put(f"/identities/{identity['id']}/secret", secret=made[1])
    sink = owner.post("/sinks", name=unique("sink"), kind="webhook", address="http://127.0.0.1:9/in", secret=made[2])
    owner.patch(f"/sinks/{sink['id']}", secret=made[3])
    owner.post(f"/sinks/{sink['id']}/disable")
    assert owner.rest("POST", "/me/confirm", {"password": f"wrong {made[4]}"}).status_code == 400

    told = list(everything(owner, "/identities", "/sinks", "/servers"))

    owner.rest("DELETE", f"/sinks/{sink['id']}")
    assert any(identity["id"] in one for one in told)
    assert any(sink["id"] in one for one in told)
    assert not [one for one in told if any(secret in one for secret in made)]


def test_issued_secrets_are_told_once(workspace: Workspace, place: Place) -> None:
    owner = workspace.owner
    rotated = owner.post(f"/tokens/{place.token['id']}/rotate", overlap_hours=1)["token"]
    role = role_of(owner, "hosts:read")
    key = owner.post("/provisioning-keys", name=unique("key"), role_id=role, capabilities=["hosts:read"])
    rolled = owner.post(f"/provisioning-keys/{key['id']}/roll", overlap_hours=1)["secret"]

    told = list(everything(owner, "/tokens", "/provisioning-keys", "/connections", "/hosts"))

    assert any(place.token["prefix"] in one for one in told)
    for secret in (place.agent.secret, rotated, key["secret"], rolled):
        assert not [one for one in told if secret in one]


def test_secret_of_a_token_is_told_to_its_owner_only(workspace: Workspace, place: Place) -> None:
    person = new_person(workspace, "api-tokens:manage")
    token, _ = new_token(person.browser, place.host, place.gateway)

    refused = place.owner.rest("POST", f"/tokens/{token['id']}/rotate", {"overlap_hours": 0})
    asked = place.owner.post(f"/tokens/{token['id']}/ask-for-new")
    collected = place.owner.rest("POST", f"/tokens/{token['id']}/collect")

    assert (refused.status_code, collected.status_code) == (403, 403)
    assert "gwa_" not in json.dumps({**asked, "prefix": ""})
    assert person.browser.post(f"/tokens/{token['id']}/collect")["token"].startswith("gwa_")


def test_field_of_an_event_that_names_a_secret_is_masked_on_the_page(workspace: Workspace, place: Place) -> None:
    """The test inserts an event with unmasked secrets by SQL, because the product masks secrets when it stores them."""
    value, uid = secrets.token_urlsafe(24), str(uuid4())
    (event, *_) = results(workspace.owner, "/admin-events", target_id=place.host["id"])
    listed = workspace.sql("SELECT column_name FROM information_schema.columns WHERE table_name = 'auditlog_event'")
    columns = ", ".join({str(row[0]) for row in listed} - {"id", "uid", "changes"})
    names = ("secret", "password", "token", "refresh", "authorization", "cookie", "api_key")
    workspace.sql(
        f"INSERT INTO auditlog_event (uid, changes, {columns})"
        f" SELECT %s, %s, {columns} FROM auditlog_event WHERE uid = %s",
        uid,
        json.dumps({**{name: [None, value] for name in names}, "label": [None, uid]}),
        event["id"],
    )

    listing = workspace.owner.http.get("/settings/admin-events/", params={"target": place.host["id"]})

    assert uid in listing.text
    assert value not in listing.text
