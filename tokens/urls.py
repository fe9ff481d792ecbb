from django.urls import path

from tokens import api_key_views, views

app_name = "tokens"

urlpatterns = [
    path("settings/api-tokens", views.listing, name="list"),
    path("settings/api-tokens/numbers", views.numbers, name="numbers"),
    path("settings/api-tokens/create", views.create, name="create"),
    path("settings/api-tokens/create/agent", views.create_agent, name="create_agent"),
    path("settings/notices/dismiss", views.dismiss, name="dismiss"),
    path("settings/api-keys", api_key_views.listing, name="api_keys"),
    path("settings/api-keys/create", api_key_views.create, name="create_api_key"),
    path("settings/api-keys/<uuid:pk>/revoke", api_key_views.revoke, name="revoke_api_key"),
    path("gateways/<slug:slug>/tokens/", views.for_gateway, name="for_gateway"),
    path("revoke/tokens/", views.revoke_picked, name="revoke_picked"),
    path("tokens/<uuid:pk>/edit/", views.edit, name="edit"),
    path("tokens/<uuid:pk>/regenerate/", views.regenerate, name="regenerate"),
    path("tokens/<uuid:pk>/ask-for-new/", views.ask_for_new, name="ask_for_new"),
    path("tokens/<uuid:pk>/collect/", views.collect, name="collect"),
    path("tokens/<uuid:pk>/end-previous/", views.end_previous, name="end_previous"),
    path("tokens/<uuid:pk>/revoke/", views.revoke, name="revoke"),
    path("connections/<uuid:pk>/regenerate/", views.regenerate_key, name="regenerate_key"),
]
