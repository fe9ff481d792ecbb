from django.apps import AppConfig


class GatewayAdminConfig(AppConfig):
    name = "gatewayadmin"
    verbose_name = "Gateway Admin"

    def ready(self) -> None:
        from gatewayadmin import log_names  # noqa: PLC0415  Registers them; needs the models.
        from gatewayadmin.config import checks  # noqa: F401, PLC0415  Registers them.

        log_names.register_name_lookups()
