"""Sinks that write objects to S3: each row is written at least once, and no object is overwritten."""

from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from django.db import connection

from sinks import reading, receivers, sending
from sinks.models import BadSinkAddress, BadSinkSecret, Sink
from sinks.objects import S3, Folder, NotKept, region_of, s3_signature_headers
from sinks.sending import send_test_line
from tests.calls import call
from tests.sinks.conftest import KEYS, Bucket
from tests.sinks.receiver import Request, Webhook, unreadable
from wire.guard import Guard

pytestmark = pytest.mark.django_db(transaction=True)


def to(bucket: Bucket, kind: str = "s3", **fields: Any) -> Sink:
    told = {"name": "Bucket", "kind": kind, "address": bucket.url, "secret": KEYS, "by": None}
    return Sink.objects.add(**(told | fields))


@pytest.mark.full
def test_rows_are_kept_as_json_lines(bucket: Bucket) -> None:
    sink = to(bucket)
    made = [str(call(feature_name=f"tool {n}").uid) for n in range(5)]

    assert sending.send_undelivered(sink.pk) == 6

    assert [row["id"] for row in bucket.rows()] == made
    assert [row["action"] for row in bucket.rows("event")] == ["sink.created"]
    [name] = [name for name in bucket.names() if "/call/" in name]
    assert name.startswith(f"gateway/call/{datetime.now(UTC):%Y/%m/%d}/")
    assert sending.send_undelivered(sink.pk) == 0
    assert sending.due() == [], "objects are written once a minute at most"
    Sink.objects.update(looked_at=datetime.now(UTC) - receivers.Bucket.every)
    assert sending.due() == [sink.pk]


@pytest.mark.full
def test_calls_that_arrive_while_an_object_is_written_are_in_the_next_one(hook: Webhook) -> None:
    """Otherwise a busy gateway would write an object for each few calls."""

    def call_meanwhile(request: Request) -> None:
        call()
        connection.close()
        request.say(200)

    address = f"{hook.url}/bucket"
    sink = Sink.objects.add(name="Bucket", kind="s3", address=address, secret=KEYS, sends_events=False, by=None)
    for _ in range(3):
        call()
    hook.script = [call_meanwhile] * 9

    assert [sending.send_undelivered(sink.pk) for _ in range(2)] == [3, 1]
    assert [len(request.rows) for request in hook.requests] == [3, 1]


def test_rows_are_kept_as_parquet(bucket: Bucket) -> None:
    sink = to(bucket, "s3_parquet", sends_payloads=True)
    made = [call(request_payload={"n": n}, duration_ms=n + 0.5) for n in range(3)]

    sending.send_undelivered(sink.pk)

    [name] = [name for name in bucket.names() if "/call/" in name]
    table = pq.read_table(pa.BufferReader(bucket.read(name)))
    assert table.column("id").to_pylist() == [str(one.uid) for one in made]
    assert table.column("duration_ms").to_pylist() == [0.5, 1.5, 2.5]
    assert table.column("request_payload").to_pylist() == ['{"n":0}', '{"n":1}', '{"n":2}']
    assert table.schema.field("created_at").type == pa.timestamp("us", tz="UTC")
    assert abs(table.column("created_at")[0].as_py() - made[0].created_at).total_seconds() < 0.001


@pytest.mark.full
def test_delivery_that_is_repeated_makes_no_other_object(bucket: Bucket) -> None:
    """The acknowledgement was lost, so the sink starts from its old position and writes the same object."""
    sink = to(bucket, sends_events=False)
    made = {str(call().uid) for _ in range(4)}
    before = {name: getattr(sink, name) for name in reading.POSITION}
    sending.send_undelivered(sink.pk)
    names = bucket.names()
    Sink.objects.filter(pk=sink.pk).update(**before)

    assert sending.send_undelivered(sink.pk) == 4
    assert bucket.names() == names

    Sink.objects.filter(pk=sink.pk).update(**before)
    made.add(str(call().uid))  # One more row: a new object, in which four rows are repeated.
    sending.send_undelivered(sink.pk)
    assert {row["id"] for row in bucket.rows()} == made
    assert len(bucket.rows()) == 4 + 5


def test_a_store_is_judged_by_its_status_whatever_its_body_is(hook: Webhook) -> None:
    hook.script = [unreadable(200), unreadable(412), unreadable(503, Retry_After="40")]
    with S3(f"{hook.url}/logs", KEYS, Guard((ip_network("127.0.0.0/8"),)), 20) as store:
        assert (store.put("one", b"1"), store.put("one", b"1")) == (True, False)
        with pytest.raises(NotKept, match="answered 503") as refused:
            store.put("two", b"2")
    assert refused.value.retry_after == "40"


@pytest.mark.full
def test_store_that_refuses_is_tried_later_and_loses_nothing(bucket: Bucket, s3_server: str) -> None:
    sink = to(bucket, address=f"{s3_server}/another/place", sends_events=False)
    call()

    assert sending.send_undelivered(sink.pk) == 0
    state = Sink.objects.get(pk=sink.pk)
    assert (state.status, state.last_error) == ("failing", "It answered 404 (NoSuchBucket).")
    state.edit(address=bucket.url, by=None)
    assert sending.send_undelivered(sink.pk) == 1
    assert send_test_line(state, by=None).delivered


@pytest.mark.full
def test_an_invalid_bucket_is_refused_in_words(bucket: Bucket) -> None:
    for field, value, words in (
        ("address", "http://93.184.216.34/bucket", "without TLS"),
        ("address", "https://169.254.169.254/bucket", "private or reserved"),
        ("address", "https://93.184.216.34/bucket?list-type=2", "looks like https://s3"),
        ("secret", "no colon", "its id, a colon, its secret"),
    ):
        with pytest.raises((BadSinkAddress, BadSinkSecret), match=words):
            to(bucket, **{field: value})


# --- Stores ----------------------------------------------------------------------------------------------------------


def test_requests_are_signed_as_amazons_own_client_signs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now, data = datetime(2026, 11, 21, 22, 5, tzinfo=UTC), b"some rows"
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now.replace(tzinfo=None))
    for name, region in (("call/2026/11/20/a.parquet", "us-east-1"), ("with space/ä+b=c~.jsonl.gz", "eu-central-1")):
        url = str(httpx.URL(f"https://s3.example.com:9000/logs/{quote(name, safe='/-_.~')}"))
        theirs = AWSRequest("PUT", url, headers={"If-None-Match": "*"}, data=data)
        theirs.context["payload_signing_enabled"] = True
        S3SigV4Auth(Credentials("AKIDEXAMPLE", "a secret key"), "s3", region).add_auth(theirs)

        keys = ("AKIDEXAMPLE", "a secret key")
        ours = s3_signature_headers("PUT", url, {"if-none-match": "*"}, data, keys, region, now)

        assert ours["authorization"] == theirs.headers["Authorization"]
        assert ours["host"] == urlsplit(url).netloc


def test_region_is_that_of_the_address() -> None:
    regions = {
        "https://s3.eu-central-1.amazonaws.com/bucket": "eu-central-1",
        "https://bucket.s3.us-gov-west-1.amazonaws.com/x": "us-gov-west-1",
        "https://bucket.s3.dualstack.ap-south-1.amazonaws.com": "ap-south-1",
        "https://minio.example.com/bucket": "us-east-1",
        "https://minio.example.com/bucket?region=here": "here",
    }
    assert {address: region_of(address) for address in regions} == regions


def test_existing_objects_are_never_overwritten(bucket: Bucket, tmp_path: Path) -> None:
    stores: list[S3 | Folder] = [Folder(tmp_path), S3(bucket.url, KEYS, Guard((ip_network("127.0.0.0/8"),)), 10)]
    for store in stores:
        with store:
            assert store.get("a/b.txt") is None
            assert store.put("a/b.txt", b"first")
            assert not store.put("a/b.txt", b"second")
            assert store.get("a/b.txt") == b"first"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.txt"]
