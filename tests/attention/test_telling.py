"""People are notified of matters they can act on, of the outcome of their requests, and of access that ends soon."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.db import connection
from django.utils import timezone

from accounts.models import User
from attention import delivery, telling
from attention.delivery import ChannelError
from attention.matters import MATTERS, OpenMatter
from attention.models import Channel, Notification
from auditlog.models import Event
from capabilities import Capability
from gatewayadmin.serving import housekeeping
from servers.models import Health
from sinks.receivers import signature, signing_key
from tests import make
from tests.conftest import SignIn
from tests.docs.pages import ROOT
from tests.house.doors import browser, session_of
from tests.rest import Rest
from tests.sinks.receiver import SECRET
from tokens.models import Token

pytestmark = pytest.mark.django_db

type AddChannel = Callable[..., Channel]


class Hook:
    """A receiver of JSON that answers with `status`."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(hook.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/a-secret-path"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.requests]


@pytest.fixture
def hook(loopback_is_allowed: None) -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def chief() -> User:
    return make.user(*Capability, email="chief@example.com")


def add(chief: User, hook: Hook, kind: str = "webhook", **fields: Any) -> Channel:
    secret = {"secret": SECRET} if kind == "webhook" else {}
    return Channel.objects.add(by=chief, kind=kind, for_workspace=True, address=hook.url, **secret, **fields)


def told() -> int:
    """Create the due notifications and deliver them; return the number of delivered ones."""
    telling.tell_at_once()
    telling.tell_daily()
    return telling.deliver_due()


@pytest.mark.full
def test_who_may_act_is_mailed_once_and_again_when_something_new_waits(chief: User) -> None:
    make.user(Capability.HOSTS_READ, email="onlooker@example.com")
    make.user(Capability.HOSTS_TOGGLE, email="left@example.com", is_active=False)
    first = make.app("Claude", needs_approval=True)

    told()
    told()
    [letter] = mail.outbox
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=11)):
        make.app("Cursor", needs_approval=True)
        told()
        told()

    assert (letter.subject, letter.bcc, letter.to) == ("1 app waits for approval", [chief.email], [])
    assert "Claude" in letter.body
    assert "/hosts/?status=pending" in letter.body
    assert [one.subject for one in mail.outbox[1:]] == ["2 apps wait for approval"]
    assert "Cursor" in mail.outbox[1].body
    assert "Claude" not in mail.outbox[1].body
    assert first.is_pending


@pytest.mark.full
def test_a_matter_that_comes_back_is_told_again_and_one_that_lasts_is_not(chief: User) -> None:
    server = make.server(name="Jira")
    for minutes, health in ((0, Health.DOWN), (20, Health.DOWN), (40, Health.OK), (60, Health.DOWN)):
        with time_machine.travel(datetime.now(UTC) + timedelta(minutes=minutes), tick=False):
            server.note_health(health, "timeout" if health == Health.DOWN else "")
            told()

    assert [one.subject for one in mail.outbox] == ["1 server is down", "1 server is down"]


@pytest.mark.full
def test_what_is_no_incident_is_told_once_a_day(chief: User) -> None:
    link = make.connection(make.agent(by=chief), make.gateway(), chief)
    begin = datetime.now(UTC)
    for hours in (0, 1, 25):
        with time_machine.travel(begin + timedelta(hours=hours), tick=False):
            Token.objects.filter(pk=make.token(link).token.pk).update(expires_at=None)
            told()

    assert [one.subject for one in mail.outbox] == ["1 token never expires", "3 tokens never expire"]


@pytest.mark.full
def test_a_flapping_server_does_not_flood(chief: User) -> None:
    begin = datetime.now(UTC)
    for n in range(telling.MOST_A_DAY + 4):
        with time_machine.travel(begin + timedelta(minutes=11 * n), tick=False):
            make.server(name=f"Server {n}").note_health(Health.DOWN, "timeout")
            told()

    assert len(mail.outbox) == telling.MOST_A_DAY


def test_each_kind_is_told_in_its_form_and_names_neither_act_nor_become_links(chief: User, hook: Hook) -> None:
    for kind in ("webhook", "slack", "teams"):
        add(chief, hook, kind)
    name = "<!channel> evil.example or https://evil.example/x"
    make.app(name, needs_approval=True)

    told()

    by_kind = {
        "webhook" if "type" in body and "data" in body else "slack" if "text" in body else "teams": (headers, body, raw)
        for (headers, raw), body in zip(hook.requests, hook.bodies, strict=True)
    }
    headers, body, raw = by_kind["webhook"]
    made = signature(signing_key(SECRET), headers["webhook-id"], headers["webhook-timestamp"], raw)
    assert headers["webhook-signature"] == f"v1,{made}"
    assert body["data"]["text"] == name, "programs get unescaped text"
    slack = by_kind["slack"][1]
    assert "&lt;!channel&gt;" in slack["text"]
    assert slack["unfurl_links"] is False
    card = by_kind["teams"][1]["attachments"][0]["content"]
    assert {block["type"] for block in card["body"]} == {"RichTextBlock"}  # Text runs are not parsed as Markdown.
    assert not any(name.startswith("webhook-") for name in by_kind["slack"][0])
    for text in (by_kind["slack"][2].decode(), by_kind["teams"][2].decode(), mail.outbox[0].body):
        assert "evil.\u200bexample or https:\u200b//evil.\u200bexample/x" in text
        assert "evil.example" not in text


def test_a_failing_receiver_is_tried_again_and_its_channel_says_so_unless_it_refuses_for_good(
    chief: User, hook: Hook
) -> None:
    channel = add(chief, hook)
    make.app("Claude", needs_approval=True)
    hook.status = 503

    told()
    channel.refresh_from_db()
    assert channel.last_error == "It answered 503."
    hook.status = 200
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=10)):
        assert told()
    channel.refresh_from_db()

    assert channel.last_error == ""
    assert len(hook.requests) == 2
    assert hook.requests[0][0]["webhook-id"] == hook.requests[1][0]["webhook-id"]

    hook.status = 404
    for minutes in (20, 60, 120):
        with time_machine.travel(datetime.now(UTC) + timedelta(minutes=minutes)):
            make.app(needs_approval=True) if minutes == 20 else None
            told()
    assert len(hook.requests) == 3
    assert telling.drop_old(timezone.now() + timedelta(days=31)) > 0


def test_a_matter_that_fails_holds_back_no_message_of_others(chief: User, monkeypatch: pytest.MonkeyPatch) -> None:
    make.app("Claude", needs_approval=True)

    def broken(_: User | None) -> OpenMatter:
        raise RuntimeError

    assert MATTERS[0].at_once
    monkeypatch.setattr(telling, "MATTERS", [replace(MATTERS[0], find=broken), *MATTERS[1:]])
    with pytest.raises(ExceptionGroup, match="some messages could not be queued"):
        housekeeping._tell()

    assert [one.subject for one in mail.outbox] == ["1 app waits for approval"]


def test_quiet_hours_delay_what_is_no_incident_or_approval() -> None:
    channel = Channel(quiet_from=time(22), quiet_until=time(7), zone="Europe/Berlin")
    night, day = datetime(2026, 1, 10, 22, 30, tzinfo=UTC), datetime(2026, 1, 10, 12, tzinfo=UTC)

    assert channel.quiet_end(night) == datetime(2026, 1, 11, 6, tzinfo=UTC)
    assert channel.quiet_end(datetime(2026, 1, 11, 5, 59, tzinfo=UTC)) == datetime(2026, 1, 11, 6, tzinfo=UTC)
    assert channel.quiet_end(day) == day


@pytest.mark.full
def test_what_is_switched_off_is_not_sent(chief: User, settings: Any) -> None:
    channel = Channel.objects.create(owner=chief, kind="mail", muted=["apps"])
    make.app("Claude", needs_approval=True)
    told()
    Channel.objects.filter(pk=channel.pk).update(enabled=False, muted=[])
    told()
    settings.MAIL_SERVER = None
    make.user(*Capability)
    told()

    assert mail.outbox == []
    assert not Notification.objects.filter(sent_at__isnull=False).exists()


def test_who_asked_is_told_the_outcome_once(chief: User) -> None:
    person = make.user(email="dev@example.com")
    person.ask_for(Capability.LOGS_READ)
    person.ask_for(Capability.HOSTS_READ)
    told()
    mail.outbox.clear()

    person.decline_request(Capability.HOSTS_READ, by=chief)
    told()
    role = make.user(Capability.LOGS_READ).role
    assert role
    person.give_role(role, by=chief)
    told()
    person.give_role(make.role(Capability.LOGS_READ, Capability.AUDIT_READ), by=chief)
    told()

    assert [(one.subject, one.bcc) for one in mail.outbox] == [
        ("Your request was declined", [person.email]),
        ("Your request was granted", [person.email]),
    ]
    assert Capability.LOGS_READ.label in mail.outbox[1].body


@pytest.mark.full
def test_a_webhook_has_the_fields_the_page_shows(chief: User, hook: Hook) -> None:
    page = (ROOT / "docs" / "how-to" / "needs-attention.md").read_text()
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    add(chief, hook)
    for name in ("Cursor", "Windsurf"):
        make.app(name, needs_approval=True)

    told()
    [body] = hook.bodies

    assert list(body) == list(shown)
    assert list(body["data"]) == list(shown["data"])
    for name in ("matter", "title"):
        assert body["data"][name] == shown["data"][name]
    assert sorted(body["data"]["text"].splitlines()) == sorted(shown["data"]["text"].splitlines())
    for link in (body["data"]["link"], shown["data"]["link"]):
        assert link.endswith("/hosts/?status=pending")


@pytest.mark.full
def test_owners_are_told_before_their_tokens_end_on_some_days_and_not_of_new_ones() -> None:
    ann = make.user(email="owner@example.com")
    link, now = make.connection(make.agent(by=ann), make.gateway(), ann), timezone.now()
    for days, age in ((15, 80), (14, 80), (13, 80), (3, 80), (2, 80), (1, 80), (3, 0)):
        token = make.token(link, name=f"{days} {age}").token
        ends = {"expires_at": now + timedelta(days=days, hours=0 if age else -1)}
        Token.objects.filter(pk=token.pk).update(created_at=now - timedelta(days=age), **ends)

    telling.tell_endings()
    telling.tell_endings()
    telling.deliver_due()

    [letter] = mail.outbox
    assert (letter.subject, letter.bcc) == ("3 tokens, sign-ins or grants end soon, the first in 1 day", [ann.email])
    assert re.findall(r"^(\d+ \d+): ", str(letter.body), re.MULTILINE) == ["1 80", "3 80", "14 80"]


def test_people_set_up_their_own_channels_which_never_lead_inside(
    ann: User, hook: Hook, sign_in: SignIn, chief: User
) -> None:
    client = sign_in(ann)
    fields = {"secret": SECRET, "enabled": "on", "matters": ["outcomes"], "zone": "UTC"}
    path = "/settings/notifications/add?kind=webhook"

    inside = client.post(path, fields | {"address": hook.url})
    weak = client.post(path, fields | {"address": "https://93.184.216.34/hook", "secret": "short"})
    half = client.post(path, fields | {"address": "https://93.184.216.34/hook", "quiet_from": "22:00"})
    refused = client.post(f"{path}&for=workspace", fields | {"address": "https://93.184.216.34/hook"})
    added = client.post(path, fields | {"address": "https://93.184.216.34/hook/a-secret-path"})

    assert [inside.status_code, weak.status_code, half.status_code, refused.status_code] == [422, 422, 422, 403]
    assert "24 random bytes" in weak.content.decode()
    assert added.status_code == 302
    channel = Channel.objects.get(kind="webhook")
    assert (channel.owner, channel.origin, channel.muted) == (ann, "https://93.184.216.34", ["endings", "reviews"])
    shown = client.get("/settings/notifications").content.decode() + client.get(added["Location"]).content.decode()
    assert "a-secret-path" not in shown
    assert SECRET not in shown
    for other in (browser(session_of(make.user())), browser(session_of(chief))):
        assert other.get(added["Location"]).status_code == 404
        assert other.post(f"/settings/notifications/{channel.pk}/remove").status_code == 404
        assert other.post(f"/settings/notifications/{channel.pk}/test").status_code == 404
    events = str(list(Event.objects.filter(action__startswith="channel.").values_list("changes", flat=True)))
    assert "a-secret-path" not in events


@pytest.mark.full
def test_a_channel_moves_only_with_its_secret_and_says_why_its_test_failed(
    chief: User, hook: Hook, settings: Any
) -> None:
    channel, client = add(chief, hook), browser(session_of(chief))
    base, fields = f"/settings/notifications/{channel.pk}", {"enabled": "on", "matters": ["apps"]}

    hook.status = 500
    assert "It answered 500." in client.post(f"{base}/test", follow=True).content.decode()
    Channel.objects.filter(pk=channel.pk).update(last_error="It answered 500.")
    hook.status = 200
    client.post(f"{base}/test")
    assert Channel.objects.get(pk=channel.pk).last_error == ""
    letters = Channel.objects.create(owner=chief, kind="mail")
    settings.MAIL_SERVER = None
    page = client.post(f"/settings/notifications/{letters.pk}/test", follow=True).content.decode()
    assert "Not delivered. No mail server is set." in page
    for wrong in ({"address": f"{hook.url}/other", "zone": "UTC"}, {"zone": "Mars"}):
        assert client.post(base, fields | wrong).status_code == 422
    hours = {"zone": "Europe/Berlin", "quiet_from": "22:00", "quiet_until": "07:00"}
    assert client.post(base, fields | hours).status_code == 302

    channel.refresh_from_db()
    assert channel.opened() == (hook.url, SECRET)
    assert ("apps" in channel.muted, "servers-down" in channel.muted) == (False, True)


def test_mail_is_changed_and_stays(ann: User, sign_in: SignIn) -> None:
    client = sign_in(ann)

    page = client.get("/settings/notifications/mail").content.decode()
    saved = client.post("/settings/notifications/mail", {"matters": ["endings"], "zone": "UTC"})
    channel = Channel.objects.get(owner=ann)

    assert "ann" in page
    assert saved.status_code == 302
    assert (channel.enabled, channel.muted) == (False, ["outcomes", "reviews"])
    client.post(f"/settings/notifications/{channel.pk}/remove")
    assert Channel.objects.filter(owner=ann).count() == 1


# The REST API follows the rules of the page.


def test_over_rest_a_channel_is_tested_and_its_address_and_secret_stay_here(chief: User, hook: Hook) -> None:
    api = Rest.of(chief)
    new = {"kind": "webhook", "for_workspace": True, "address": hook.url, "secret": SECRET, "matters": ["apps"]}

    made = api.post("/notification-channels", new)
    path = f"/notification-channels/{made.json()['id']}"
    sent = api.post(f"{path}/test")
    hook.status = 500
    failed = api.post(f"{path}/test")

    assert made.json()["address"] == hook.url.removesuffix("/hook/a-secret-path")
    assert not {"a-secret-path", SECRET} & set(re.split(r"[\"/]", made.text + api.get(path).text))
    assert hook.bodies[0]["data"]["title"] == "Test message"
    assert [one.json() for one in (sent, failed)] == [
        {"delivered": True, "detail": ""},
        {"delivered": False, "detail": "It answered 500."},
    ]


@pytest.mark.full
def test_over_rest_the_rules_of_the_page_hold(ann: User, hook: Hook, chief: User) -> None:
    api, path = Rest.of(ann), "/notification-channels"
    public = "https://93.184.216.34/hook"
    of_workspace = add(chief, hook)
    of_chief = Channel.objects.add(by=chief, kind="slack", for_workspace=False, address=public)
    wrong = {
        "address": {"kind": "slack", "address": hook.url},
        "secret": {"kind": "webhook", "address": public, "secret": "short"},
        "zone": {"kind": "mail", "zone": "Mars"},
        "quiet_until": {"kind": "mail", "quiet_from": "22:00"},
        "matters": {"kind": "mail", "matters": ["servers-down"]},  # Ann may choose only what is about herself.
    }

    assert {name: [*api.post(path, body).json()["errors"]] for name, body in wrong.items()} == {
        name: [name] for name in wrong
    }
    assert api.post(path, {"kind": "slack", "address": public, "for_workspace": True}).status_code == 403
    assert api.get(f"{path}/{of_workspace.pk}").status_code == 403
    for own in (Rest.of(ann), Rest.of(make.user(*Capability))):
        assert own.patch(f"{path}/{of_chief.pk}", {"enabled": False}).status_code == 404
    mine = api.post(path, {"kind": "mail", "enabled": False})
    assert (mine.json()["address"], mine.json()["enabled"]) == (ann.email, False)
    assert api.post(path, {"kind": "mail"}).json()["code"] == "already_exists"
    assert api.delete(f"{path}/{mine.json()['id']}").status_code == 409
    assert [one["id"] for one in api.get(path).json()["results"]] == [mine.json()["id"]]


@pytest.mark.full
def test_a_key_sets_up_no_channel_that_is_told_more_than_the_key_may_see(chief: User) -> None:
    key = make.api_key(chief, Capability.WORKSPACE_MANAGE, Capability.HOSTS_TOGGLE)
    api = Rest.bearing(key.secret)

    made = api.post("/notification-channels", {"kind": "slack", "address": "https://93.184.216.34/hook"})

    assert made.json()["matters"] == ["apps", "outcomes", "endings", "reviews"]
    assert "servers-down" in Channel.objects.get(pk=made.json()["id"]).muted


# Changes while a message waits


def test_quiet_hours_delay_all_but_approvals_and_who_lost_the_permission_meanwhile_is_not_sent_them(
    chief: User,
) -> None:
    now = timezone.now()
    hours = {"quiet_from": (now - timedelta(hours=1)).time(), "quiet_until": (now + timedelta(hours=1)).time()}
    for person in (chief, other := make.user(*Capability)):
        Channel.objects.create(owner=person, kind="mail", **hours)
    link = make.connection(make.agent(by=chief), make.gateway(), chief)
    Token.objects.filter(pk=make.token(link).token.pk).update(expires_at=None)
    make.app("Claude", needs_approval=True)
    told()
    assert {one.subject for one in mail.outbox} == {"1 app waits for approval"}
    other.give_role(make.role(), by=chief)

    with time_machine.travel(now + timedelta(hours=2)):
        telling.deliver_due()

    assert [one.bcc for one in mail.outbox if one.subject == "1 token never expires"] == [[chief.email]]


def test_an_address_is_looked_up_before_the_channel_is_locked(
    chief: User, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, during = add(chief, hook, "slack"), []
    look_up = delivery.checked

    def checked(*arguments: Any) -> bool:
        during.append(len(connection.savepoint_ids))
        Channel.objects.get(pk=channel.pk).edit(by=chief, zone="Europe/Berlin")
        return look_up(*arguments)

    monkeypatch.setattr(delivery, "checked", checked)
    before = len(connection.savepoint_ids)
    channel.edit(by=chief, address=f"{hook.url}/other", enabled=False)

    assert during == [before]
    assert (channel.opened()[0], channel.zone, channel.enabled) == (f"{hook.url}/other", "Europe/Berlin", False)


def test_a_channel_that_is_disabled_while_its_new_address_is_looked_up_stays_disabled(
    chief: User, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, look_up = add(chief, hook, "slack"), delivery.checked

    def checked(*arguments: Any) -> bool:
        Channel.objects.get(pk=channel.pk).edit(by=chief, enabled=False)
        return look_up(*arguments)

    monkeypatch.setattr(delivery, "checked", checked)
    answer = Rest.of(chief).patch(f"/notification-channels/{channel.pk}", {"address": f"{hook.url}/other"})

    channel.refresh_from_db()
    assert (answer.status_code, answer.json()["enabled"]) == (200, False)
    assert (channel.opened()[0], channel.enabled) == (f"{hook.url}/other", False)


def test_of_two_new_addresses_at_once_the_second_is_refused(chief: User, hook: Hook) -> None:
    channel = add(chief, hook, "slack")
    stale = Channel.objects.get(pk=channel.pk)
    channel.edit(by=chief, address=f"{hook.url}/first")

    with pytest.raises(ChannelError, match="changed the address"):
        stale.edit(by=chief, address=f"{hook.url}/second")

    assert channel.opened()[0] == f"{hook.url}/first"
