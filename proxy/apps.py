"""App configuration of the proxy."""

from django.apps import AppConfig


class Proxy(AppConfig):
    name = "proxy"
    verbose_name = "Traffic"
