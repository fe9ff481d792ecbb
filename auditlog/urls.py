from django.urls import path

from auditlog import busiest, event_views, group_views, own_calls, saved_view_views, trail_views, views

app_name = "auditlog"

urlpatterns = [
    path("logs/", views.calls, name="calls"),
    path("logs/export/", views.export_calls, name="export_calls"),
    path("logs/live/", views.live, name="live"),
    path("logs/values/<slug:name>/", views.facet, name="facet"),
    path("logs/groups/", group_views.grouped, name="groups"),
    path("logs/groups/export/", group_views.export_groups, name="export_groups"),
    path("logs/busiest/", busiest.busiest, name="busiest"),
    path("logs/look/", views.keep_look, name="keep_look"),
    path("logs/views/", saved_view_views.save, name="save_view"),
    path("logs/views/<uuid:pk>/", saved_view_views.saved_view, name="view"),
    path("logs/what-if/", trail_views.what_if, name="what_if"),
    path("logs/remedy/", trail_views.remedy, name="remedy"),
    path("logs/<uuid:uid>/", views.call, name="call"),
    path("logs/<uuid:uid>/now/", views.now, name="now"),
    path("settings/calls", own_calls.listing, name="own"),
    path("settings/calls/<uuid:uid>/", own_calls.one, name="own_call"),
    path("settings/calls/wait", own_calls.waiting, name="wait"),
    path("settings/admin-events/", event_views.listing, name="events"),
    path("settings/admin-events/export/", event_views.export_events, name="export_events"),
    path("settings/admin-events/<uuid:uid>/", event_views.detail, name="event"),
]
