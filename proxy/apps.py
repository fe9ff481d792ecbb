"""What this app is called for people."""

from django.apps import AppConfig


class Proxy(AppConfig):
    name = "proxy"
    verbose_name = "Traffic"
