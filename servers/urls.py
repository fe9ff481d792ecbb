from django.urls import path

from servers import adding, bring_views, identity_views, views
from servers.oauth_client import views as oauth_client

app_name = "servers"

urlpatterns = [
    path("servers/", views.listing, name="list"),
    path("switch/servers/", views.switch, name="switch"),
    path("servers/add/", adding.add, name="add"),
    path("servers/add/file/", bring_views.page, name="bring"),
    path("servers/slug/", views.slug, name="slug"),
    path("servers/find/<uuid:pk>/", views.find_by_id, name="find"),
    path("servers/<slug:slug>/", views.detail, name="detail"),
    path("servers/<slug:slug>/gateways/", views.gateways, name="gateways"),
    path("servers/<slug:slug>/edit/", views.edit, name="edit"),
    path("servers/<slug:slug>/test/", views.test, name="test"),
    path("servers/<slug:slug>/program/", views.program, name="program"),
    path("servers/<slug:slug>/program/stderr/", views.standard_error, name="standard_error"),
    path("servers/<slug:slug>/logs/", views.logs, name="logs"),
    path("servers/<slug:slug>/enable/", views.enable, name="enable"),
    path("servers/<slug:slug>/disable/", views.disable, name="disable"),
    path("servers/<slug:slug>/archive/", views.archive, name="archive"),
    path("servers/<slug:slug>/identities/", identity_views.listing, name="identities"),
    path("servers/<slug:slug>/identities/add/", identity_views.add, name="add_identity"),
    path("identities/<uuid:pk>/replace/", identity_views.replace, name="replace_identity"),
    path("identities/<uuid:pk>/enable/", identity_views.enable, name="enable_identity"),
    path("identities/<uuid:pk>/disable/", identity_views.disable, name="disable_identity"),
    path("identities/<uuid:pk>/confirm/", identity_views.confirm_server, name="confirm_identity"),
    path("identities/<uuid:pk>/revoke/", identity_views.revoke, name="revoke_identity"),
    path("identities/<uuid:pk>/authenticate/", oauth_client.authenticate_identity, name="authenticate_identity"),
    path("servers/<slug:slug>/authenticate/", oauth_client.authenticate, name="authenticate"),
    path("servers/<slug:slug>/client/", oauth_client.client, name="client"),
    path("upstream-oauth/callback/", oauth_client.callback, name="oauth_callback"),
    path("upstream-oauth/callback/<str:key>/", oauth_client.callback, name="issuer_callback"),
    path("upstream-oauth/client.json", oauth_client.client_document, name="client_document"),
]
