"""Configure the app and its verbose name."""

from django.apps import AppConfig


class Logs(AppConfig):
    name = "auditlog"
    verbose_name = "Logs"
