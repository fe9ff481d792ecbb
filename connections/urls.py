from django.urls import path

from connections import (
    archiving,
    cutting,
    enrolment_views,
    identity_views,
    mcp_connections_views,
    own_views,
    people_views,
    views,
)

app_name = "connections"

urlpatterns = [
    path("settings/mcp-connections", mcp_connections_views.listing, name="mcp"),
    path("settings/identities", own_views.listing, name="mine"),
    path("hosts/<uuid:pk>/connections/", views.for_host, name="for_host"),
    path("hosts/<uuid:pk>/enrolled/", enrolment_views.listing, name="enrolled"),
    path("hosts/<uuid:pk>/disable/", cutting.host, name="disable_host"),
    path("hosts/<uuid:pk>/archive/", archiving.host, name="archive_host"),
    path("people/<uuid:pk>/deactivate/", people_views.deactivate, name="deactivate_person"),
    path("people/<uuid:pk>/cut-off/", people_views.cut_off, name="cut_off"),
    path("gateways/<slug:slug>/connections/", views.for_gateway, name="for_gateway"),
    path("gateways/<slug:slug>/disable/", cutting.gateway, name="disable_gateway"),
    path("gateways/<slug:slug>/archive/", archiving.gateway, name="archive_gateway"),
    path("servers/<slug:slug>/disable/", cutting.server, name="disable_server"),
    path("servers/<slug:slug>/archive/", archiving.server, name="archive_server"),
    path("assignments/<uuid:pk>/disable/", cutting.assignment, name="disable_assignment"),
    path("tools/<uuid:pk>/disable/", cutting.tool, name="disable_tool"),
    path("identities/<uuid:pk>/disable/", identity_views.disable, name="disable_identity"),
    path("identities/<uuid:pk>/enable/", identity_views.enable, name="enable_identity"),
    path("identities/<uuid:pk>/confirm/", identity_views.confirm_place, name="confirm_identity"),
    path("identities/<uuid:pk>/revoke/", identity_views.revoke, name="revoke_identity"),
    path("connections/<uuid:pk>/disable/", views.disable, name="disable"),
    path("connections/<uuid:pk>/enable/", views.enable, name="enable"),
    path("connections/<uuid:pk>/revoke/", views.revoke, name="revoke"),
]
