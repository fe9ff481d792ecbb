"""The roles every workspace starts with."""

from typing import NamedTuple

from capabilities.catalogue import Capability


class BuiltIn(NamedTuple):
    """A role made at start; a locked one is rewritten at every start."""

    name: str
    capabilities: frozenset[Capability]
    locked: bool = False


SUPER_ADMIN = BuiltIn("Super admin", frozenset(Capability), locked=True)
ADMINISTRATOR = BuiltIn("Administrator", frozenset(Capability))
MEMBER = BuiltIn("Member", frozenset({Capability.OAUTH_CONNECT, Capability.HOSTS_READ}))

BUILT_IN = (SUPER_ADMIN, ADMINISTRATOR, MEMBER)
