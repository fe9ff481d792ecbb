"""App configuration of holds and approvals."""

from django.apps import AppConfig


class Approvals(AppConfig):
    name = "approvals"
