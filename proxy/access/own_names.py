"""Tools and prompts called by their server's own name, without its alias.

Pages of MCP Apps call tools like this, because they do not know that there is a gateway.
"""

from collections.abc import Sequence

from proxy.access.decision import AccessRow, AssignedServer
from proxy.access.features import (
    MAX_NAME,
    PROMPT,
    TOOL,
    FeatureRow,
    Named,
    OutOfScope,
    Refusal,
    UnknownFeature,
    authorize,
    can_be_listed,
    server_of,
)
from wire.tool_names import SEPARATOR

MOST_SUGGESTED = 5


class AmbiguousName(UnknownFeature):
    """Several servers have a feature of this name, so the caller has to choose one by its alias."""

    def __init__(self, kind: str, name: str, exposed: Sequence[str]) -> None:
        super().__init__(kind, name)
        shown = ", ".join(each[:MAX_NAME] for each in exposed[:MOST_SUGGESTED])
        self.args = (f"{self}; several servers have it, call one of: {shown}" if exposed else str(self),)


def may_be_own_name(grant: AccessRow, feature: Named) -> bool:
    """Return whether an unknown name may be a server's own name for a tool or prompt.

    A name with an alias belongs to the server of that alias. A name without one belongs to the server without an alias
    if that has or had such a feature, or if its list cannot be requested to find out.
    """
    if feature.kind not in (TOOL, PROMPT) or SEPARATOR in feature.name:
        return False  # The alias may be of a removed server; no other server may get its calls.
    owner = server_of(grant.assignments, feature.name)
    return owner is None or (not owner.alias and not owner.features and can_be_listed(owner))


def exposed_feature(grant: AccessRow, feature: Named) -> Named:
    """Return the feature by its exposed name, from a grant queried with BY_OWN_NAME.

    A feature that is disabled or held counts, and so does one of a disabled server: disabling one must never send its
    calls to another server. Only servers outside the token's scope do not count when there are others.

    Raises UnknownFeature.
    """
    known = [(assigned, row) for assigned in grant.assignments for row in _own_name_rows(assigned, feature.name)]
    candidates = [each for each in known if each[0].in_scope] or known
    if len(candidates) == 1:
        return Named(feature.kind, candidates[0][1].exposed_name)
    if not candidates or not candidates[0][0].in_scope:
        raise UnknownFeature(feature.kind, feature.name)
    usable = [row.exposed_name for assigned, row in candidates if _is_usable(assigned, feature, row)]
    raise AmbiguousName(feature.kind, feature.name, usable)


def _own_name_rows(assigned: AssignedServer, name: str) -> list[FeatureRow]:
    return [row for row in map(FeatureRow._make, assigned.features or ()) if row.name == name][:1]


def _is_usable(assigned: AssignedServer, feature: Named, row: FeatureRow) -> bool:
    try:
        authorize(assigned, feature.kind, feature.name, row)
    except (OutOfScope, Refusal, UnknownFeature):
        return False
    return True
