"""The address of a topic: tls://one.example.com:9093,two.example.com:9093/topic?mechanism=SCRAM-SHA-256."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")
LOOKS = (
    "Kafka looks like tls://one.example.com:9093,two.example.com:9093/topic, with “?mechanism=” at its end if need be."
)
MOST = 20

_topic = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}").fullmatch
_place = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})").fullmatch


class Brokers(NamedTuple):
    """Some brokers of a cluster, as host:port, a topic, and how a user proves who it is."""

    places: tuple[str, ...]
    topic: str
    encrypted: bool
    mechanism: str

    def split(self) -> list[tuple[str, int]]:
        """The hosts and ports."""
        parts = (place.rpartition(":") for place in self.places)
        return [(host.strip("[]"), int(port)) for host, _, port in parts]


def brokers_at(address: str) -> Brokers:
    """Raises ValueError, in words, for what is no address of a topic."""
    try:
        parts = urlsplit(address)
    except ValueError:
        raise ValueError(f"{LOOKS}.") from None
    asked = parse_qs(parts.query, keep_blank_values=True)
    mechanisms = asked.pop("mechanism", [MECHANISMS[0]])
    found = [_place(place) for place in parts.netloc.split(",")]
    topic = parts.path.removeprefix("/")
    is_whole = all(place and 0 < int(place[2]) < 65536 for place in found) and len(found) <= MOST and _topic(topic)
    if parts.scheme not in ("tls", "tcp") or not is_whole or asked or parts.fragment:
        raise ValueError(f"{LOOKS}.")
    if len(mechanisms) != 1 or mechanisms[0] not in MECHANISMS:
        raise ValueError(f"Mechanisms are {', '.join(MECHANISMS)}.")
    if mechanisms[0] == "PLAIN" and parts.scheme == "tcp":
        raise ValueError("PLAIN shows the password to everybody on the way: it takes tls://.")
    return Brokers(tuple(place[0] for place in found if place), topic, parts.scheme == "tls", mechanisms[0])
