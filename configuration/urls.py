from django.urls import path

from configuration import plan_views, views

app_name = "configuration"

urlpatterns = [
    path("settings/configuration/", plan_views.plan_page, name="plan"),
    path("settings/configuration/apply/", plan_views.apply_page, name="apply"),
    path("settings/configuration/export/", plan_views.export_file, name="export"),
    path("gateways/<slug:slug>/yaml/", views.gateway, name="gateway"),
    path("servers/<slug:slug>/yaml/", views.server, name="server"),
    path("hosts/<uuid:pk>/yaml/", views.agent, name="agent"),
    path("rules/<uuid:pk>/yaml/", views.rule, name="rule"),
    path("people/roles/<uuid:pk>/yaml/", views.role, name="role"),
    path("people/teams/<uuid:pk>/yaml/", views.team, name="team"),
    path("settings/sinks/<uuid:pk>/yaml/", views.sink, name="sink"),
    path("settings/workspace/yaml/", views.workspace, name="workspace"),
    path("settings/organisation/yaml/", views.organisation, name="organisation"),
]
