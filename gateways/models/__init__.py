"""The URLs agents reach, and the servers behind each."""

from gateways.models.assignment import (
    AliasRequired,
    Assignment,
    AssignmentQuerySet,
    IdentityScheme,
    ServerStillEnabled,
    ToolPolicy,
    WrongIdentity,
    alias_validator,
)
from gateways.models.feature import Feature, FeatureQuerySet, Kind
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
    "Feature",
    "FeatureQuerySet",
    "Gateway",
    "GatewayError",
    "GatewayQuerySet",
    "IdentityGateways",
    "IdentityScheme",
    "Kind",
    "Reach",
    "ServerStillEnabled",
    "TeamGateways",
    "ToolPolicy",
    "WrongIdentity",
    "alias_validator",
    "allow_identity",
]
