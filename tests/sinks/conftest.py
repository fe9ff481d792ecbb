"""Sinks of this test, and their receiving ends."""

from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from django.conf import LazySettings

from sinks.models import Sink
from tests.sinks.receiver import SECRET, Webhook, webhook

type MakeSink = Callable[..., Sink]


@pytest.fixture
def inside(settings: LazySettings) -> None:
    """Loopback addresses may be called."""
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]


@pytest.fixture
def hook(inside: None) -> Iterator[Webhook]:
    with webhook() as received:
        yield received


@pytest.fixture
def to_hook(hook: Webhook) -> MakeSink:
    """Makes a sink that sends to `hook`."""

    def make(**fields: Any) -> Sink:
        told = {"name": "Archive", "kind": "webhook", "address": hook.url, "secret": SECRET, "by": None}
        return Sink.objects.add(**(told | fields))

    return make
