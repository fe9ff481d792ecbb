"""What the log cannot know by itself: which things bear a name today. Those who know it say so at start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

MOST = 8  # More things of one name are looked for by that name.


@dataclass
class Names:
    """Finds ids by names; without anybody who knows, it finds none."""

    bearers: dict[str, Callable[[str, bool], list[UUID]]] = field(default_factory=dict)
    urls: Callable[[UUID], str] = lambda gateway: ""

    def bearers_of(self, kind: str, name: str, *, part: bool) -> list[UUID]:
        """The hosts (gateways, servers, users) called `name`, or with it as a part of their name."""
        return self.bearers[kind](name, part) if kind in self.bearers else []

    def url_of(self, gateway: UUID) -> str:
        """The address of a gateway; empty when it is gone."""
        return self.urls(gateway)


names = Names()
