"""The history of what opens gateways."""

from access.models.history import Fact, FactKind, FactQuerySet, recorded_since

__all__ = ["Fact", "FactKind", "FactQuerySet", "recorded_since"]
