"""The Django admin: all models, changed through the same model methods as on the pages.

The admin classes of all apps are in this package, not in the apps: counting an action's impact needs several apps.
"""

from gatewayadmin.admin import logs, people, traffic

__all__ = ["logs", "people", "traffic"]
