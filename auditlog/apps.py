"""What this app is called for people."""

from django.apps import AppConfig


class Logs(AppConfig):
    name = "auditlog"
    verbose_name = "Logs"
