"""What this app is called for people."""

from django.apps import AppConfig


class OAuth(AppConfig):
    name = "oauth"
    verbose_name = "OAuth"
