from django.apps import AppConfig


class GatewayAdminConfig(AppConfig):
    name = "gatewayadmin"
    verbose_name = "Gateway Admin"

    def ready(self) -> None:
        from gatewayadmin import checks, log_names  # noqa: F401, PLC0415  Registers them; needs the models.

        log_names.tell()
