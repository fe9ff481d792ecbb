"""Sinks that are topics of Kafka: each row at least once, over guarded sockets, and in words when it fails."""

import json
import logging
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from auditlog.models import Event
from capabilities import Capability
from sinks import kafka as sink_kafka
from sinks import sending
from sinks.brokers import brokers_at
from sinks.models import BadAddress, BadSecret, Sink
from sinks.receivers import origin_of
from sinks.trial import send_test_line
from tests import make
from tests.authority import certificate
from tests.calls import call
from tests.house.doors import browser as browser_of
from tests.house.doors import session_of
from tests.rest import Rest
from tests.sinks.kafka_cluster import (
    CLUSTER_DENIED,
    FEW_REPLICAS,
    INIT_PRODUCER_ID,
    NOT_LEADER,
    PRODUCE,
    TOO_LARGE,
    TOPIC_DENIED,
    Cluster,
    behind_doors,
    kafka,
)
from tests.workspace import free_port
from wire.guard import tls

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.turns(3)]

USER = "gateway:word-of-secrecy"
USERS = {"gateway": "word-of-secrecy"}


@pytest.fixture
def cluster(loopback_is_allowed: None) -> Iterator[Cluster]:
    with kafka() as running:
        yield running


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """How brokers at 127.0.0.1 prove who they are; this machine trusts it."""
    context = certificate(tmp_path / "end.pem", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "end.pem"))
    tls.cache_clear()
    yield context
    tls.cache_clear()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery may take two seconds."""
    monkeypatch.setattr("sinks.receivers.SECONDS", 2.0)


def to(address: str, **fields: Any) -> Sink:
    return Sink.objects.add(**({"name": "Kafka", "kind": "kafka", "address": address, "by": None} | fields))


def ids(cluster: Cluster, log: str = "call") -> list[str]:
    rows = [json.loads(value) for _, value in cluster.messages()]
    return [row["id"] for row in rows if row["log"] == log]


def test_each_row_is_a_message_whose_key_tells_one_that_came_twice(cluster: Cluster) -> None:
    sink = to(cluster.address())
    made = {str(call(feature_name=f"tool {n}").uid) for n in range(30)}

    assert sending.serve(sink.pk) == 31

    found = cluster.messages()
    assert {key.decode() for key, value in found if json.loads(value)["log"] == "call"} == made
    assert all(json.loads(value)["id"] == key.decode() for key, value in found)
    assert ids(cluster, "event")
    assert Sink.objects.get(pk=sink.pk).status == "current"


@pytest.mark.parametrize("code", [NOT_LEADER, FEW_REPLICAS])
def test_what_passes_is_tried_again_within_a_delivery_and_comes_once(cluster: Cluster, code: int) -> None:
    sink = to(cluster.address(), sends_events=False)
    made = [str(call().uid) for _ in range(5)]
    cluster.fail(PRODUCE, code)

    assert sending.serve(sink.pk) == 5
    assert sorted(ids(cluster)) == sorted(made)


@pytest.mark.drill
def test_a_broker_that_is_down_keeps_no_row_back(cluster: Cluster) -> None:
    sink = to(cluster.address(), sends_events=False)
    made = [str(call().uid) for _ in range(20)]
    cluster.set_down(1, is_down=True)
    sending.serve(sink.pk)
    cluster.set_down(1, is_down=False)
    Sink.objects.update(retry_at=None)
    sending.serve(sink.pk)

    assert set(ids(cluster)) == set(made)


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        (PRODUCE, TOPIC_DENIED, "It does not let this user write to the topic."),
        (PRODUCE, CLUSTER_DENIED, "It does not let this user write."),
    ],
)
def test_what_is_not_allowed_is_told_and_loses_nothing(cluster: Cluster, key: int, code: int, words: str) -> None:
    sink = to(cluster.address(), sends_events=False)
    made = str(call().uid)
    cluster.fail(key, *[code] * 6)

    assert sending.serve(sink.pk) == 0
    row = Sink.objects.get(pk=sink.pk)
    assert (row.last_error, row.status, row.refused) == (words, "failing", 0)
    cluster.fail_no_more(key)
    Sink.objects.update(retry_at=None)
    assert sending.serve(sink.pk) == 1
    assert ids(cluster) == [made]


@pytest.mark.drill
def test_a_broker_that_lets_nobody_write_each_row_once_gets_them_at_least_once(cluster: Cluster) -> None:
    sink = to(cluster.address(), sends_events=False)
    made = str(call().uid)
    cluster.fail(INIT_PRODUCER_ID, CLUSTER_DENIED)

    assert sending.serve(sink.pk) == 1
    assert ids(cluster) == [made]


def test_a_row_that_is_too_large_is_found_left_out_and_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_kafka, "LARGEST", 10_000)
    sink = to(cluster.address(), sends_events=False, sends_payloads=True)
    small = [str(call().uid) for _ in range(2)]
    large = str(call(request_payload={"x": "x" * 20_000}).uid)
    small += [str(call().uid) for _ in range(2)]

    assert sending.serve(sink.pk) == 4

    assert set(ids(cluster)) == set(small)
    row = Sink.objects.get(pk=sink.pk)
    assert (row.refused, row.status) == (1, "current")
    [event] = Event.objects.filter(action="sink.row_refused")
    assert event.changes == {"log": "call", "row": large, "answer": "It refuses a row (MessageSizeTooLarge)."}


@pytest.mark.drill
def test_a_row_that_a_broker_finds_too_large_is_left_out(cluster: Cluster) -> None:
    sink = to(cluster.address(), sends_events=False)
    refused = str(call().uid)
    cluster.fail(PRODUCE, TOO_LARGE)
    sending.serve(sink.pk)
    made = str(call().uid)
    sending.serve(sink.pk)

    assert ids(cluster) == [made]
    [event] = Event.objects.filter(action="sink.row_refused")
    assert event.changes["row"] == refused


@pytest.mark.parametrize("mechanism", ["", "SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"])
def test_a_user_proves_who_it_is_over_tls(
    mechanism: str, cluster: Cluster, end: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    with behind_doors(cluster, end, USERS) as places, caplog.at_level(logging.DEBUG):
        query = f"?mechanism={mechanism}" if mechanism else ""
        sink = to(cluster.address(places, "tls", query), secret=USER, sends_events=False)
        made = str(call().uid)
        assert sending.serve(sink.pk) == 1
        assert send_test_line(sink, by=None).delivered

    assert ids(cluster) == [made]
    assert "secrecy" not in caplog.text


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"])
def test_a_wrong_password_is_told_without_it(
    mechanism: str, cluster: Cluster, end: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    with behind_doors(cluster, end, {"gateway": "another"}) as places, caplog.at_level(logging.DEBUG):
        sink = to(cluster.address(places, "tls", f"?mechanism={mechanism}"), secret=USER)
        outcome = send_test_line(sink, by=None)

    assert outcome.detail == "Not delivered: it refuses the user or the password."
    assert "secrecy" not in caplog.text


def test_a_mechanism_that_brokers_do_not_take_is_told(cluster: Cluster, end: ssl.SSLContext) -> None:
    with behind_doors(cluster, end, USERS, ("PLAIN",)) as places:
        sink = to(cluster.address(places, "tls"), secret=USER)
        outcome = send_test_line(sink, by=None)

    assert "does not take this mechanism (SASL); say another as “?mechanism=”" in outcome.detail


def test_a_certificate_that_is_not_trusted_is_told(cluster: Cluster, tmp_path: Path, soon: None) -> None:
    with behind_doors(cluster, certificate(tmp_path / "unknown.pem", "127.0.0.1")) as places:
        outcome = send_test_line(to(cluster.address(places, "tls")), by=None)

    assert "has a TLS certificate that this gateway does not trust" in outcome.detail


@pytest.mark.drill
def test_a_broker_that_names_another_at_a_private_address_leads_nowhere(cluster: Cluster, soon: None) -> None:
    """What is allowed is allowed for the address that was entered; the one a broker names is checked as well."""
    sink = to(cluster.address(), sends_events=False)
    call()
    for number in (1, 2, 3):
        cluster.say_at(number, "10.0.0.5", 9092)

    assert sending.serve(sink.pk) == 0
    assert Sink.objects.get(pk=sink.pk).last_error == "It leads to an address that may not be called."
    for number, port in enumerate(cluster.ports, 1):
        cluster.say_at(number, "127.0.0.1", port)


def test_a_place_that_turned_private_is_not_called(cluster: Cluster, soon: None) -> None:
    sink = to(cluster.address(), sends_events=False)
    Sink.objects.update(private=False)
    call()

    assert sending.serve(sink.pk) == 0
    assert Sink.objects.get(pk=sink.pk).last_error == "It leads to an address that may not be called."


def test_brokers_that_are_away_or_silent_are_told(loopback_is_allowed: None, soon: None) -> None:
    away = to(f"tcp://127.0.0.1:{free_port()}/gateway")
    assert send_test_line(away, by=None).detail == "Not delivered: it refused the connection: nothing listens there."


@pytest.mark.drill
def test_brokers_that_say_nothing_are_given_up(loopback_is_allowed: None, soon: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = to(f"tcp://127.0.0.1:{silent.getsockname()[1]}/gateway")
        assert "did not acknowledge within 2 seconds" in send_test_line(sink, by=None).detail


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "Kafka looks like"),
        ("kafka:9092/topic", "Kafka looks like"),
        ("tls://k.example.com/topic", "Kafka looks like"),
        ("tls://93.184.216.34:9093", "Kafka looks like"),
        ("tls://93.184.216.34:9093/a/b", "Kafka looks like"),
        ("tls://93.184.216.34:9093/..", "Kafka looks like"),
        ("tls://93.184.216.34:99999/t", "Kafka looks like"),
        ("tls://user:secret@93.184.216.34:9093/t", "Kafka looks like"),
        ("tls://93.184.216.34:9093/t?x=1", "Kafka looks like"),
        ("tls://[::1/t", "Kafka looks like"),
        ("tls://93.184.216.34:9093/t?mechanism=GSSAPI", "Mechanisms are"),
        ("tls://93.184.216.34:9093/t?mechanism=PLAIN&mechanism=PLAIN", "Mechanisms are"),
        ("tcp://127.0.0.1:9092/t?mechanism=PLAIN", "shows the password"),
        ("tcp://93.184.216.34:9092/t", "without TLS"),
        ("tls://10.0.0.1:9093/t", "private or reserved"),
        ("tls://93.184.216.34:9093,10.0.0.1:9093/t", "private or reserved"),
        ("tls://93.184.216.34:9093,127.0.0.1:9093/t", "Some of these brokers are at private addresses"),
    ],
)
def test_an_address_that_is_none_is_refused_in_words(address: str, words: str, loopback_is_allowed: None) -> None:
    with pytest.raises(BadAddress, match=words):
        to(address)


@pytest.mark.parametrize("secret", ["gateway", "gateway:", ":of-secrecy", "gateway:of-\nsecrecy"])
def test_a_user_without_a_name_or_a_password_is_refused(secret: str, loopback_is_allowed: None) -> None:
    with pytest.raises(BadSecret, match="its name, a colon, its password") as caught:
        to("tcp://127.0.0.1:9092/t", secret=secret)
    assert "secrecy" not in str(caught.value)


def test_a_password_is_not_shown_to_other_brokers_than_it_was_entered_for(loopback_is_allowed: None) -> None:
    sink = to("tcp://127.0.0.1:9092,127.0.0.1:9093/t", secret=USER)
    with pytest.raises(BadSecret, match="Enter it again"):
        sink.edit(address="tcp://127.0.0.1:9092,127.0.0.1:9094/t", by=None)
    sink.refresh_from_db()
    sink.edit(address="tcp://127.0.0.1:9092,127.0.0.1:9093/other", by=None)
    assert Sink.objects.get().secret() == USER


def test_a_password_that_was_proven_is_not_shown_itself_unless_it_is_entered_again(loopback_is_allowed: None) -> None:
    sink = to("tls://127.0.0.1:9092/t", secret=USER)
    with pytest.raises(BadSecret, match="Enter it again"):
        sink.edit(address="tls://127.0.0.1:9092/t?mechanism=%50LAIN", by=None)
    sink.refresh_from_db()
    sink.edit(address="tls://127.0.0.1:9092/t?mechanism=PLAIN", secret=USER, by=None)
    assert Sink.objects.get().secret() == USER


def test_lists_and_events_tell_the_brokers_and_not_the_topic() -> None:
    assert origin_of("tls://a.example.com:9093,b.example.com:9093/t?mechanism=PLAIN") == (
        "tls://a.example.com:9093,b.example.com:9093"
    )
    assert origin_of("tls://me:secret@a.example.com:9093,b.example.com:9093/t") == ""
    assert brokers_at("tls://a.example.com:9093,b:1/t").split() == [("a.example.com", 9093), ("b", 1)]


def test_without_the_package_it_is_told_what_installs_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = to(cluster.address())
    monkeypatch.setitem(sys.modules, "sinks.kafka", None)
    assert "pip install 'gateway-admin[kafka]'" in send_test_line(sink, by=None).detail
    monkeypatch.setattr("sinks.receivers.find_spec", lambda name: None)
    with pytest.raises(BadAddress, match="takes the extra"):
        to(cluster.address(), name="Other")


def test_pages_and_rest_set_a_topic_up(cluster: Cluster) -> None:
    boss = make.user(*Capability)
    browser = browser_of(session_of(boss))
    assert "SCRAM-SHA-512" in browser.get("/settings/sinks/add/?kind=kafka").content.decode()
    form = {"name": "By page", "address": cluster.address(), "sends_calls": "on"}
    assert browser.post("/settings/sinks/add/?kind=kafka", form).status_code == 302
    sink = Sink.objects.get()
    assert "was acknowledged" in browser.post(f"/settings/sinks/{sink.pk}/test/").content.decode()
    body = {"name": "By REST", "kind": "kafka", "address": cluster.address(), "secret": USER}
    made = Rest.of(boss).send("post", "/sinks", body)
    assert made.status_code == 201
    assert made.json()["address"] == f"tcp://{cluster.bootstraps}/..."
    assert "secrecy" not in made.content.decode()
