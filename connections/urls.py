from django.urls import path

from connections import carried_identities, gateway_hosts, sessions, views

app_name = "connections"

urlpatterns = [
    path("settings/mcp-connections", views.mcp_connections, name="mcp"),
    path("settings/identities", carried_identities.own, name="mine"),
    path("hosts/<uuid:pk>/connections/", views.for_host, name="for_host"),
    path("hosts/<uuid:pk>/enrolled/", views.enrolments, name="enrolled"),
    path("hosts/<uuid:pk>/sessions/", sessions.of_host, name="sessions"),
    path("gateways/<slug:slug>/connections/", views.for_gateway, name="for_gateway"),
    path("gateways/<slug:slug>/access/", gateway_hosts.listing, name="gateway_hosts"),
    path("gateways/<slug:slug>/access/hosts/", gateway_hosts.restrict, name="restrict_hosts"),
    path("gateways/<slug:slug>/access/hosts/<uuid:host>/allow/", gateway_hosts.allow, name="allow_host"),
    path("gateways/<slug:slug>/access/hosts/<uuid:host>/block/", gateway_hosts.block, name="block_host"),
    path("gateways/<slug:slug>/access/hosts/<uuid:host>/reset/", gateway_hosts.reset, name="reset_host"),
    path("switch/connections/", views.switch, name="switch"),
    path("revoke/connections/", views.revoke_picked, name="revoke_picked"),
    path("connections/<uuid:pk>/disable/", views.disable, name="disable"),
    path("connections/<uuid:pk>/enable/", views.enable, name="enable"),
    path("connections/<uuid:pk>/revoke/", views.revoke, name="revoke"),
    path("connections/<uuid:pk>/sessions/end/", sessions.end, name="end_sessions"),
    path("connections/<uuid:pk>/identities/<uuid:assignment>/", carried_identities.identity, name="identity"),
    path("connections/<uuid:pk>/identities/<uuid:assignment>/drop/", carried_identities.drop, name="drop_identity"),
]
