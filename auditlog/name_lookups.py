"""Lookups of hosts, gateways, servers and users by name; gatewayadmin registers them at start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

MAX_IDS = 8  # More things of one name are searched by the name in the row instead of by id.


@dataclass
class NameLookups:
    """Finds the ids of things by name; as long as nothing is registered, it finds none."""

    finders: dict[str, Callable[[str, bool], list[UUID]]] = field(default_factory=dict)
    finders_in_calls: dict[str, Callable[[str, bool], list[UUID]]] = field(default_factory=dict)
    exposed_names: Callable[[str], list[str]] = lambda name: []
    gateway_url: Callable[[UUID], str] = lambda gateway_id: ""

    def ids_named(self, kind: str, name: str, *, part: bool) -> list[UUID]:
        """The ids of the hosts (gateways, servers, users) called `name`, or with it as a part of their name."""
        return self.finders[kind](name, part) if kind in self.finders else []

    def stands_in_calls(self, kind: str, name: str, *, part: bool) -> bool:
        """Whether a call is of a thing of this kind with such a name: who reads the log is told of no others."""
        return bool(self.finders_in_calls[kind](name, part))

    def knows(self, kind: str) -> bool:
        """Whether things of this kind can be looked up."""
        return kind in self.finders

    def url_of(self, gateway_id: UUID) -> str:
        """The address of a gateway; empty when it is gone."""
        return self.gateway_url(gateway_id)


lookups = NameLookups()
