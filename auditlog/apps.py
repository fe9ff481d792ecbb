"""Configuration of the app, with its verbose name."""

from django.apps import AppConfig


class Logs(AppConfig):
    name = "auditlog"
    verbose_name = "Logs"
