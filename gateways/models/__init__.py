"""Gateways, the servers assigned to them, and their tools."""

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
from gateways.models.feature import Feature, FeatureQuerySet, FeatureVersion, Kind, Listing, NothingToAccept, State
from gateways.models.gateway import (
    Gateway,
    GatewayError,
    GatewayQuerySet,
    IdentityGateways,
    OnArrival,
    OnChange,
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
    "FeatureVersion",
    "Gateway",
    "GatewayError",
    "GatewayQuerySet",
    "IdentityGateways",
    "IdentityScheme",
    "Kind",
    "Listing",
    "NothingToAccept",
    "OnArrival",
    "OnChange",
    "Reach",
    "ServerStillEnabled",
    "State",
    "TeamGateways",
    "ToolPolicy",
    "WrongIdentity",
    "alias_validator",
    "allow_identity",
]
