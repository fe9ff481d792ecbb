from django.apps import AppConfig


class GatewayAdminConfig(AppConfig):
    name = "gatewayadmin"
    verbose_name = "Gateway Admin"
