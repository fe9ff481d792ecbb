"""Syslog and standard output as receivers, allowed addresses, and permission to set up sinks."""

import json
import os
import socket
import ssl
import struct
import sys
import time
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.utils import timezone

from auditlog.models import Event
from capabilities import Capability, CapabilityRequired
from sinks import models as sink_models
from sinks import sending
from sinks.models import BadSinkAddress, BadSinkSecret, SendsNothing, Sink, SinkNameTaken
from sinks.receivers import backoff, signing_key, weakness
from sinks.sending import send_test_line
from tests import make
from tests.authority import certificate
from tests.calls import call
from tests.house.doors import browser as browser_of
from tests.house.doors import session_of
from tests.rest import Rest
from tests.sinks.conftest import MakeSink
from tests.sinks.receiver import OTHER_SECRET, SECRET, Syslog, Webhook, webhook
from tests.workspace import ROOT
from wire import guard

pytestmark = pytest.mark.django_db(transaction=True)

ALL = frozenset(Capability)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """TLS certificate of a receiver at 127.0.0.1, from an authority trusted by this machine."""
    pem = tmp_path / "logs.pem"
    context = certificate(pem, "127.0.0.1")
    monkeypatch.setattr(guard, "tls", lambda: ssl.create_default_context(cafile=str(pem)))
    return context


@pytest.mark.full
def test_syslog_gets_a_counted_message_for_each_row(
    loopback_is_allowed: None, authority: ssl.SSLContext, subtests: pytest.Subtests
) -> None:
    for scheme in ("tcp", "tls"):
        received = Syslog(authority if scheme == "tls" else None)
        address = f"{scheme}://127.0.0.1:{received.port}"
        sink = Sink.objects.add(name=scheme, kind="syslog", address=address, sends_events=False, by=None)
        made = [call(feature_name="echo \n “quoted”"), call(outcome="denied"), call(outcome="timeout")]

        with subtests.test(str(scheme)), closing(received):
            assert sending.send_undelivered(sink.pk) == 3

            assert len(received.messages) == 3
            heads, texts = zip(*(message.split(b"{", 1) for message in received.messages), strict=True)
            assert [json.loads(b"{" + text)["id"] for text in texts] == [str(one.uid) for one in made]
            assert [head.split()[0] for head in heads] == [b"<110>1", b"<108>1", b"<107>1"]
            stamp, host, app, process, kind, data = heads[0].split()[1:]
            assert datetime.fromisoformat(stamp.decode()).date() == made[0].created_at.date()
            assert (host, app, process, kind, data) == (b"localhost", b"gateway-admin", b"-", b"call", b"-")
            assert b"\n" not in received.messages[0]


def test_syslog_that_ends_tls_without_a_goodbye_has_acknowledged(
    loopback_is_allowed: None, authority: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: Syslog, taken: socket.socket) -> None:
        while taken.recv(1 << 16):
            pass
        taken.close()

    monkeypatch.setattr(Syslog, "_read", read)
    received = Syslog(authority)
    address = f"tls://127.0.0.1:{received.port}"
    sink = Sink.objects.add(name="Syslog", kind="syslog", address=address, sends_events=False, by=None)
    call()

    assert sending.send_undelivered(sink.pk) == 1
    received.close()


@pytest.mark.full
def test_syslog_that_hangs_up_or_resets_the_connection_has_not_acknowledged(
    loopback_is_allowed: None, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    def hang_up(self: Syslog, taken: socket.socket) -> None:
        taken.close()

    def reset(self: Syslog, taken: socket.socket) -> None:
        time.sleep(0.3)  # Let the sender write everything that the buffers can take.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        taken.close()

    for _ in range(20):
        call(request_payload="x" * 50_000)
    for read, room in ((hang_up, 1 << 20), (reset, 4096), (reset, 1 << 20)):
        monkeypatch.setattr(Syslog, "_read", read)
        name = f"{read.__name__} {room}"
        with subtests.test(name), closing(Syslog(room=room)) as received:
            address = f"tcp://127.0.0.1:{received.port}"
            sink = Sink.objects.add(
                name=name, kind="syslog", address=address, sends_events=False, from_beginning=True, by=None
            )
            assert sending.send_undelivered(sink.pk) == 0
            assert Sink.objects.get(pk=sink.pk).status == "failing"
            assert read is hang_up or "closed the connection" in Sink.objects.get(pk=sink.pk).last_error


@pytest.mark.full
def test_standard_output_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink.objects.add(name="Output", kind="stdout", sends_events=False, by=None)
    made = call()
    reads, writes = os.pipe()
    with monkeypatch.context() as patched, os.fdopen(reads, "rb") as lines:
        patched.setattr(sys, "__stdout__", os.fdopen(writes, "w"))
        assert sending.send_undelivered(sink.pk) == 1
        assert sys.__stdout__ is not None
        sys.__stdout__.close()
        assert [json.loads(line)["id"] for line in lines] == [str(made.uid)]


def test_address_that_may_not_be_called_is_refused_in_words() -> None:
    for kind, address, words in (
        ("webhook", "http://93.184.216.34/in", "without TLS"),
        ("webhook", "https://127.0.0.1/in", "private or reserved"),
        ("webhook", "https://169.254.169.254/in", "private or reserved"),
        ("webhook", "https://user:secret@93.184.216.34/", "credentials"),
        ("webhook", "logs", "https://"),
        ("webhook", "", "https://"),
        ("syslog", "udp://93.184.216.34:514", "UDP loses lines"),
        ("syslog", "tls://93.184.216.34", "UDP loses lines"),
        ("syslog", "tcp://93.184.216.34:514", "without TLS"),
        ("syslog", "tls://10.0.0.1:6514", "private or reserved"),
    ):
        with pytest.raises(BadSinkAddress, match=words):
            Sink.objects.add(name="Out", kind=kind, address=address, secret=SECRET, by=None)


@pytest.mark.full
def test_place_that_turned_private_is_not_called(to_hook: MakeSink, hook: Webhook, settings: LazySettings) -> None:
    """A sink's public name later resolves to an address in a range allowed only for private sinks (DNS rebinding)."""
    sink = to_hook(sends_events=False)
    Sink.objects.update(private=False)
    call()

    assert sending.send_undelivered(sink.pk) == 0
    assert "It may not be called" in Sink.objects.get(pk=sink.pk).last_error
    assert not hook.requests


def test_sink_says_what_is_wrong_with_it(loopback_is_allowed: None) -> None:
    told: dict[str, Any] = {"kind": "webhook", "address": "http://127.0.0.1:9/", "by": None}
    with pytest.raises(BadSinkSecret):
        Sink.objects.add(name="Short", secret="too short", **told)
    with pytest.raises(SendsNothing):
        Sink.objects.add(name="Idle", secret=SECRET, sends_calls=False, sends_events=False, **told)
    with pytest.raises(SendsNothing):
        Sink.objects.add(name="Odd", secret=SECRET, sends_calls=False, sends_payloads=True, **told)
    Sink.objects.add(name="Taken", secret=SECRET, **told)
    with pytest.raises(SinkNameTaken):
        Sink.objects.add(name="taken", secret=SECRET, **told)


def test_nobody_sends_what_they_may_not_see(subtests: pytest.Subtests) -> None:
    others = Sink.objects.add(name="Others", kind="stdout", sends_payloads=True, by=None)
    for lacks in (Capability.LOGS_READ, Capability.AUDIT_READ, Capability.LOGS_PAYLOADS):
        with subtests.test(str(lacks)):
            by = make.user(*(ALL - {lacks}))
            fields = {"name": "Out", "kind": "stdout", "sends_payloads": True}
            refused = Rest.of(by).send("post", "/sinks", fields)
            assert (refused.status_code, refused.json()["capability"]) == (403, lacks.slug)
            with pytest.raises(CapabilityRequired):
                others.edit(name="Mine", by=by)
            others.disable(by=by)
            with pytest.raises(CapabilityRequired):
                others.enable(by=by)


def test_only_people_who_change_sinks_see_the_path_of_an_address(to_hook: MakeSink) -> None:
    sink = to_hook()
    auditor = make.user(Capability.SINKS_READ, Capability.LOGS_READ, Capability.AUDIT_READ)

    assert sink.place_for(make.user(*ALL)) == sink.address
    assert sink.place_for(auditor) == sink.place != sink.address


def test_secret_is_sealed_and_never_told(to_hook: MakeSink) -> None:
    sink = to_hook()

    assert SECRET.encode() not in bytes(sink.secret_ciphertext or b"")
    assert sink.secret() == SECRET
    answer = Rest.of(make.user(*ALL)).send("get", f"/sinks/{sink.pk}")
    assert answer.json()["has_secret"] is True
    assert SECRET not in answer.content.decode()
    assert not [event for event in Event.objects.all() if SECRET in str(event.changes)]
    sink.edit(name="Other", secret="", by=None)
    assert Sink.objects.get(pk=sink.pk).secret() == SECRET


@pytest.mark.full
def test_edit_acts_on_the_next_delivery_and_is_told(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_events=False)
    hook.script = [lambda request: request.say(500)]
    call()
    sending.send_undelivered(sink.pk)

    sink.edit(secret=OTHER_SECRET, sends_events=True, by=None)

    assert sink.pk in [one.pk for one in Sink.objects.filter(retry_at=None)]
    told = Event.objects.get(action="sink.updated").changes
    assert told == {"sends_events": [False, True], "secret_replaced": True}


def test_test_line_tells_how_it_went_and_moves_nothing(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_events=False)
    call()
    assert send_test_line(sink, by=None).delivered
    assert [row["log"] for row in hook.rows] == ["test"]
    hook.close()

    failed = send_test_line(sink, by=None)

    assert failed == (
        False,
        "Not delivered: it cannot be reached: it refused the connection: nothing listens there.",
    )
    assert Event.objects.filter(action="sink.tested").count() == 2
    assert Sink.objects.get(pk=sink.pk).delivered == 0


@pytest.mark.full
def test_pages_set_up_test_pause_and_remove(hook: Webhook) -> None:
    browser = browser_of(session_of(make.user(*ALL)))
    form = {"name": "Archive", "address": hook.url, "secret": SECRET, "sends_calls": "on", "sends_events": "on"}
    refused = browser.post("/settings/sinks/add/?kind=webhook", form | {"secret": "short"})
    assert refused.status_code == 422
    assert "at least 24 random bytes" in refused.content.decode()
    browser.post("/settings/sinks/add/?kind=webhook", form)
    sink = Sink.objects.get()
    assert "Archive" in browser.get("/settings/sinks/").content.decode()
    tested = browser.post(f"/settings/sinks/{sink.pk}/test/").content.decode()
    assert "was acknowledged" in tested
    assert f'method="post" action="/settings/sinks/{sink.pk}/"' in tested
    browser.post(f"/settings/sinks/{sink.pk}/disable/")
    assert "Paused" in browser.get("/settings/sinks/").content.decode()
    assert SECRET not in browser.get(f"/settings/sinks/{sink.pk}/").content.decode()
    browser.post(f"/settings/sinks/{sink.pk}/remove/")
    assert not Sink.objects.exists()


def test_state_of_a_sink_updates_by_itself_until_it_is_settled(to_hook: MakeSink, hook: Webhook) -> None:
    browser = browser_of(session_of(make.user(*ALL)))
    sink = to_hook(sends_events=False)
    url = f"/settings/sinks/{sink.pk}/"
    poll = {"HX-Request": "true", "HX-Target": "state-card"}
    failing = {"failures": 3, "last_error": "It answered 500.", "looked_at": timezone.now()}
    retry_at = timezone.now() + timedelta(minutes=4, seconds=30)
    Sink.objects.filter(pk=sink.pk).update(**failing, retry_at=retry_at)

    waiting = browser.get(url).content.decode()
    browser.post(f"{url}send-now/")
    due = browser.get(url, headers=poll).content.decode()
    late = browser.get(f"{url}?until=2026-01-01T00:00Z", headers=poll).content.decode()
    call()
    sending.send_undelivered(sink.pk)
    settled = browser.get(url, headers=poll).content.decode()

    assert "<dt>Next try</dt>" in waiting
    assert "in <time" in waiting
    assert ">Send now</button>" in waiting
    assert 'hx-trigger="every 2s"' in due
    assert "hx-trigger" not in late, "A page that nobody looks at any more stops asking."
    assert due.strip().startswith('<section class="card" id="state-card"')
    assert "Send now" not in due
    assert ("Up to date" in settled, "hx-get" in settled) == (True, False)


def test_secret_typed_by_hand_has_to_hold_enough_chance_and_is_told_what_it_lacks() -> None:
    repeated = "this one repeats itself"
    reasons = {
        "correct horse battery": "a secret of these characters needs a length of 30",
        "a" * 64: repeated,
        "0123456789abcdef" * 4: repeated,
        "9f86d081884c7d659a2feaa0c55ad015": "a secret of these characters needs a length of 48",  # 16 random bytes.
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c": "",
        "whsec_" + "AAEC" * 8: repeated,
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD": "",
        "whsec_C2FVsBQIhrscChlQ": "this one has 12 after “whsec_”",
        "C2FVsBQIhrscChlQIMV+b5sSYspob7oDx2k=": "",
    }
    assert {secret: weakness(secret) for secret in reasons} == reasons
    assert signing_key("plain words") == b"plain words"
    assert signing_key("whsec_AAEC") == b"\x00\x01\x02"
    assert signing_key("whsec_not base64!") == b"whsec_not base64!"


ADDRESS_TOKEN = "T0KENinTHEpath"


@pytest.fixture
def tokened(to_hook: MakeSink, hook: Webhook) -> Sink:
    """A sink whose URL contains a token, as in webhook URLs of chat services and collectors."""
    return to_hook(address=f"{hook.url}/{ADDRESS_TOKEN}?token={ADDRESS_TOKEN}", sends_payloads=True)


def test_token_in_an_address_is_shown_where_it_is_edited_alone(tokened: Sink, hook: Webhook) -> None:
    boss, reader = make.user(*ALL), make.user(*(ALL - {Capability.LOGS_PAYLOADS}))
    page, test = f"/settings/sinks/{tokened.pk}/", f"/settings/sinks/{tokened.pk}/test/"
    browser, other = browser_of(session_of(boss)), browser_of(session_of(reader))

    assert ADDRESS_TOKEN in browser.get(page).content.decode()
    shown = [browser.get("/settings/sinks/"), other.get(page), other.post(test), browser.get("/settings/admin-events/")]
    rest = Rest.of(boss)
    shown += [rest.get("/sinks"), rest.get(f"/sinks/{tokened.pk}"), rest.get("/admin-events")]
    tokened.edit(address=f"{hook.url}/{ADDRESS_TOKEN}2", by=boss)
    tokened.remove(by=boss)
    assert [one.status_code for one in shown] == [200] * 7
    assert not [one for one in shown if ADDRESS_TOKEN in one.content.decode()]
    assert not [event for event in Event.objects.all() if ADDRESS_TOKEN in str(event.changes)]
    [created] = Event.objects.filter(action="sink.created")
    assert created.changes["address"] == [None, hook.url.removesuffix("/log")]


@pytest.mark.full
def test_masked_address_stands_for_the_one_it_has(tokened: Sink) -> None:
    rest = Rest.of(make.user(*ALL))
    told = rest.get(f"/sinks/{tokened.pk}").json()

    changed = rest.send("patch", f"/sinks/{tokened.pk}", {"name": "Other", "address": told["address"]})

    assert changed.status_code == 200
    assert Sink.objects.get(pk=tokened.pk).address == tokened.address
    [event] = Event.objects.filter(action="sink.updated")
    assert set(event.changes) == {"name"}


def notices(hook: Webhook) -> list[tuple[str, str]]:
    return [(row["action"], row["actor"]) for row in hook.of("notice")]


def test_sink_hears_beforehand_what_becomes_of_it(to_hook: MakeSink, hook: Webhook) -> None:
    ann = make.user(*ALL)
    sink = to_hook()
    with webhook() as elsewhere:
        sink.edit(name="Other", by=ann)
        assert notices(hook) == []
        sink.edit(address=elsewhere.url, by=ann)
        assert (notices(hook), notices(elsewhere)) == ([("sink.updated", ann.email)], [])
        sink.edit(sends_events=False, by=ann)
        sink.disable(by=ann)
        sink.disable(by=ann)
        sink.remove(by=None)
        told = [("sink.updated", ann.email), ("sink.disabled", ann.email), ("sink.removed", "the system")]
        assert notices(elsewhere) == told
        assert f"Paused by {ann.email}" in elsewhere.of("notice")[1]["message"]


@pytest.mark.full
def test_change_that_is_refused_is_not_told_to_the_sink(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook()
    rest = Rest.of(make.user(*ALL))
    with pytest.raises(BadSinkAddress):
        sink.edit(address="http://10.0.0.1/", by=None)
    to_hook(name="Other")
    with pytest.raises(SinkNameTaken):
        sink.edit(name="OTHER", sends_events=False, by=None)
    stale = rest.send("delete", f"/sinks/{sink.pk}", None, {"If-Match": '"000000000000"'})

    assert stale.status_code == 412
    assert notices(hook) == []


@pytest.mark.full
def test_sink_that_does_not_listen_keeps_nobody_from_pausing_it(
    to_hook: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_models, "NOTICE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        sink = to_hook(address=f"http://127.0.0.1:{deaf.getsockname()[1]}/")
        sink.disable(by=None)
        assert not Sink.objects.get(pk=sink.pk).enabled
        sink.remove(by=None)
    assert not Sink.objects.exists()


def test_undo_of_a_pause_is_offered_to_people_who_may_resume(to_hook: MakeSink) -> None:
    sink, offered = to_hook(), []
    for person in (make.user(*ALL), make.user(Capability.SINKS_READ, Capability.SINKS_MANAGE)):
        Sink.objects.update(enabled=True)
        page = browser_of(session_of(person)).post(f"/settings/sinks/{sink.pk}/disable/", follow=True)
        offered.append(f"/settings/sinks/{sink.pk}/enable/" in page.content.decode())

    assert offered == [True, False]


@pytest.mark.full
def test_pausing_and_removing_ask_for_the_password_again(
    to_hook: MakeSink, hook: Webhook, subtests: pytest.Subtests
) -> None:
    sink, boss = to_hook(), make.user(*ALL, is_staff=True)
    browser, rest = browser_of(session_of(boss)), Rest.of(boss, confirmed=False)
    session = browser.session
    session["account_authentication_methods"][0]["at"] = 0.0
    session.save()

    for act, method, path in (("disable", "post", "/disable"), ("remove", "delete", "")):
        with subtests.test(act):
            page = browser.post(f"/settings/sinks/{sink.pk}/{act}/")
            asked = rest.send(method, f"/sinks/{sink.pk}{path}")
            marked = {"action": act, "_selected_action": [sink.pk], "sure": "1"}
            admin = browser.post("/admin/sinks/sink/", marked)

            assert (page.status_code, "reauthenticate" in page.headers["Location"]) == (302, True)
            assert asked.json()["code"] == "password_required"
            assert (admin.status_code, "reauthenticate" in admin.headers["Location"]) == (302, True)
            assert Sink.objects.get(pk=sink.pk).enabled
    assert notices(hook) == []


def test_failures_are_waited_for_ever_longer_up_to_five_minutes() -> None:
    waits = [backoff(failures, 1.0) for failures in (1, 2, 3, 20, 10_000)]
    assert waits == [2, 4, 8, 300, 300]
    assert backoff(3, 0.0) == 4


@pytest.mark.full
def test_documented_check_of_a_signature_takes_what_is_sent_and_nothing_else(to_hook: MakeSink, hook: Webhook) -> None:
    page = (ROOT / "docs" / "how-to" / "send-the-logs.md").read_text()
    printed: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], printed)
    sink = to_hook(sends_events=False)
    made = call()
    sending.send_undelivered(sink.pk)
    request = hook.requests[0]
    headers = {name.lower(): value for name, value in request.headers.items()}

    assert [row["id"] for row in printed["rows"](headers, request.body, SECRET)] == [str(made.uid)]
    for body, secret in ((request.body + b" ", SECRET), (request.body, OTHER_SECRET)):
        with pytest.raises(ValueError, match="not from the gateway"):
            printed["rows"](headers, body, secret)
