"""The URLs agents reach, and the servers behind each."""

from gateways.models.assignment import (
    Assignment,
    AssignmentQuerySet,
    IdentityScheme,
    StillEnabled,
    Tool,
    ToolPolicy,
    ToolQuerySet,
    WrongIdentity,
    alias_validator,
)
from gateways.models.gateway import Gateway, GatewayError, GatewayQuerySet, Reach

__all__ = [
    "Assignment",
    "AssignmentQuerySet",
    "Gateway",
    "GatewayError",
    "GatewayQuerySet",
    "IdentityScheme",
    "Reach",
    "StillEnabled",
    "Tool",
    "ToolPolicy",
    "ToolQuerySet",
    "WrongIdentity",
    "alias_validator",
]
