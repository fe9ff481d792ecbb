"""Django configuration of the directory, where clients find gateways."""

from django.apps import AppConfig


class ClientDirectory(AppConfig):
    name = "directory"
