"""The Django admin: every model, on the same verbs as the pages.

One room for all apps, above them: what a switch cuts is counted in connections, whatever it switches.
"""

from gatewayadmin.admin import access, agents, gateways, logs, people, servers, traffic

__all__ = ["access", "agents", "gateways", "logs", "people", "servers", "traffic"]
