"""Configuration of the Django app, with its verbose name."""

from django.apps import AppConfig


class OAuth(AppConfig):
    name = "oauth"
    verbose_name = "OAuth"
