from django.urls import path

from connections import mcp, people_views, views

app_name = "connections"

urlpatterns = [
    path("settings/mcp-connections", mcp.listing, name="mcp"),
    path("hosts/<uuid:pk>/connections/", views.for_host, name="for_host"),
    path("hosts/<uuid:pk>/archive/", views.archive_host, name="archive_host"),
    path("people/<uuid:pk>/deactivate/", people_views.deactivate, name="deactivate_person"),
    path("people/<uuid:pk>/cut-off/", people_views.cut_off, name="cut_off"),
    path("gateways/<slug:slug>/connections/", views.for_gateway, name="for_gateway"),
    path("connections/<uuid:pk>/disable/", views.disable, name="disable"),
    path("connections/<uuid:pk>/enable/", views.enable, name="enable"),
    path("connections/<uuid:pk>/revoke/", views.revoke, name="revoke"),
]
