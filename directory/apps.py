"""App configuration of the directory of gateways for clients."""

from django.apps import AppConfig


class ClientDirectory(AppConfig):
    name = "directory"
