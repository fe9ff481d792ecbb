from django.urls import path

from auditlog import event_views, views

app_name = "auditlog"

urlpatterns = [
    path("logs/", views.calls, name="calls"),
    path("logs/<uuid:uid>/", views.call, name="call"),
    path("settings/admin-events/", event_views.listing, name="events"),
    path("settings/admin-events/export/", event_views.export_events, name="export_events"),
    path("settings/admin-events/<uuid:uid>/", event_views.detail, name="event"),
]
