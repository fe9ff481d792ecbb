from django.urls import path

from gateways import assignment_views, feature_views, identity_gateways, team_views, tool_views, views

app_name = "gateways"

urlpatterns = [
    path("gateways/", views.listing, name="list"),
    path("gateways/add/", views.add, name="add"),
    path("gateways/slug/", views.slug, name="slug"),
    path("gateways/find/<uuid:pk>/", views.find_by_id, name="find"),
    path("gateways/<slug:slug>/", views.detail, name="detail"),
    path("gateways/<slug:slug>/rename/", views.rename, name="edit"),
    path("gateways/<slug:slug>/reach/", views.reach, name="reach"),
    path("gateways/<slug:slug>/limit/", views.limit, name="limit"),
    path("gateways/<slug:slug>/definitions/", views.definitions, name="definitions"),
    path("gateways/<slug:slug>/logs/", views.logs, name="logs"),
    path("gateways/<slug:slug>/enable/", views.enable, name="enable"),
    path("gateways/<slug:slug>/disable/", views.disable, name="disable"),
    path("gateways/<slug:slug>/archive/", views.archive, name="archive"),
    path("gateways/<slug:slug>/servers/", assignment_views.listing, name="servers"),
    path("gateways/<slug:slug>/assign/", assignment_views.assign, name="assign"),
    path("gateways/<slug:slug>/tools/", tool_views.listing, name="tools"),
    path("gateways/<slug:slug>/tools/refresh/", tool_views.refresh_features, name="refresh"),
    path("people/teams/", team_views.listing, name="teams"),
    path("people/teams/add/", team_views.add, name="add_team"),
    path("people/teams/<uuid:pk>/", team_views.detail, name="team"),
    path("people/teams/<uuid:pk>/rename/", team_views.rename, name="rename_team"),
    path("people/teams/<uuid:pk>/delete/", team_views.remove, name="remove_team"),
    path("people/teams/<uuid:pk>/add/", team_views.add_people, name="add_to_team"),
    path("people/teams/<uuid:pk>/gateways/", team_views.choose_gateways, name="team_gateways"),
    path("people/teams/<uuid:pk>/remove/<uuid:user_pk>/", team_views.remove_person, name="remove_from_team"),
    path("assignments/<uuid:pk>/edit/", assignment_views.edit, name="edit_assignment"),
    path("assignments/<uuid:pk>/remove/", assignment_views.remove, name="remove_assignment"),
    path("assignments/<uuid:pk>/enable/", assignment_views.enable, name="enable_assignment"),
    path("assignments/<uuid:pk>/disable/", assignment_views.disable, name="disable_assignment"),
    path("assignments/<uuid:pk>/policy/", tool_views.policy, name="policy"),
    path("identities/<uuid:pk>/gateways/", identity_gateways.choose, name="identity_gateways"),
    path("features/<uuid:pk>/", feature_views.detail, name="feature"),
    path("features/<uuid:pk>/accept/", feature_views.accept, name="accept"),
    path("features/<uuid:pk>/quarantine/", feature_views.quarantine, name="quarantine"),
    path("tools/<uuid:pk>/enable/", tool_views.enable, name="enable_tool"),
    path("tools/<uuid:pk>/disable/", tool_views.disable, name="disable_tool"),
]
