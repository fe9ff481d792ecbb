"""The Django admin: all models, changed through the same verbs as on the pages.

The admin classes of all apps are here, above the apps, because the impact of an action is counted in connections.
"""

from gatewayadmin.admin import logs, people, traffic

__all__ = ["logs", "people", "traffic"]
