from django.apps import AppConfig


class SinksConfig(AppConfig):
    name = "sinks"
