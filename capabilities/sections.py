"""Who may open a whole section: anybody who holds one of these, whatever they may do there."""

from capabilities.catalogue import Capability

SEES_GATEWAYS = (Capability.GATEWAYS_READ, Capability.GATEWAYS_MANAGE, Capability.GATEWAYS_TOGGLE)
SEES_SERVERS = (Capability.SERVERS_MANAGE, Capability.SERVERS_TOGGLE, Capability.IDENTITIES_MANAGE)
