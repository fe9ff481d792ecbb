from django.apps import AppConfig


class OAuthClientConfig(AppConfig):
    name = "servers.oauth_client"
    label = "upstream_oauth"
    verbose_name = "Sign-in at servers"
