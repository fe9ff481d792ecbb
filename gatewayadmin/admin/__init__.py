"""The Django admin pages of all apps. They change rows by the model methods that the product's pages use.

The admin pages are in one package, not in their apps, because an action's impact depends on models of several apps.
"""

from gatewayadmin.admin import logs, people, traffic

__all__ = ["logs", "people", "traffic"]
