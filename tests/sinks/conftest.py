"""Fixtures for sinks and their receivers."""

import gzip
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import boto3
import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from moto.server import ThreadedMotoServer

from sinks.models import Sink
from tests.sinks.receiver import SECRET, Webhook, webhook

KEYS = "AKIDEXAMPLE:a secret key"
BUCKET = "logs"

type MakeSink = Callable[..., Sink]


@pytest.fixture
def hook(loopback_is_allowed: None) -> Iterator[Webhook]:
    with webhook() as received:
        yield received


class Bucket:
    """A bucket of an S3 server, and its objects."""

    def __init__(self, place: str) -> None:
        self.url = f"{place}/{BUCKET}/gateway"
        key, _, secret = KEYS.partition(":")
        self.client = boto3.client(
            "s3", endpoint_url=place, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
        )
        self.client.create_bucket(Bucket=BUCKET)

    def close(self) -> None:
        self.client.close()

    def names(self) -> list[str]:
        found = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [one["Key"] for page in found for one in page.get("Contents", [])]

    def read(self, name: str) -> bytes:
        with closing(self.client.get_object(Bucket=BUCKET, Key=name)["Body"]) as body:
            return bytes(body.read())

    def rows(self, log: str = "call") -> list[dict[str, Any]]:
        """Return the rows of all objects, including duplicates."""
        texts = [self.read(name) for name in self.names() if name.startswith(f"gateway/{log}/")]
        return [json.loads(line) for text in texts for line in gzip.decompress(text).splitlines()]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    assert host == "127.0.0.1"
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, loopback_is_allowed: None) -> Iterator[Bucket]:
    """An empty bucket."""
    with closing(Bucket(s3_server)) as made:
        yield made
    httpx.post(f"{s3_server}/moto-api/reset").raise_for_status()


@pytest.fixture
def to_hook(hook: Webhook) -> MakeSink:
    """Return a function that makes a sink for `hook`."""

    def make(**fields: Any) -> Sink:
        told = {"name": "Archive", "kind": "webhook", "address": hook.url, "secret": SECRET, "by": None}
        return Sink.objects.add(**(told | fields))

    return make
