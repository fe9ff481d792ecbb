from django.apps import AppConfig


class GatewayAdminConfig(AppConfig):
    name = "gatewayadmin"
    verbose_name = "Gateway Admin"

    def ready(self) -> None:
        from gatewayadmin.config import checks  # noqa: F401, PLC0415  Registers them.
