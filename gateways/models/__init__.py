"""Gateways, the servers assigned to them, and their tools."""

from gateways.models.assignment import (
    AliasRequired,
    Assignment,
    AssignmentQuerySet,
    IdentityScheme,
    ServerStillEnabled,
    Tool,
    ToolPolicy,
    ToolQuerySet,
    WrongIdentity,
    alias_validator,
)
from gateways.models.gateway import (
    Gateway,
    GatewayError,
    GatewayQuerySet,
    IdentityGateways,
    Reach,
    TeamGateways,
    allow_identity,
)

__all__ = [
    "AliasRequired",
    "Assignment",
    "AssignmentQuerySet",
    "Gateway",
    "GatewayError",
    "GatewayQuerySet",
    "IdentityGateways",
    "IdentityScheme",
    "Reach",
    "ServerStillEnabled",
    "TeamGateways",
    "Tool",
    "ToolPolicy",
    "ToolQuerySet",
    "WrongIdentity",
    "alias_validator",
    "allow_identity",
]
