"""The Django admin: all models, changed through the same model methods as on the pages.

It is one package, because counting the impact of an action needs the models of several apps.
"""

from gatewayadmin.admin import logs, people, traffic

__all__ = ["logs", "people", "traffic"]
