from django.urls import path

from auditlog import charts, events, own_calls, proof, saved_views, views, waterfall, what_if

app_name = "auditlog"

urlpatterns = [
    path("logs/", views.calls, name="calls"),
    path("logs/export/", views.export_calls, name="export_calls"),
    path("logs/values/<slug:name>/", views.facet, name="facet"),
    path("logs/groups/", views.grouped, name="groups"),
    path("logs/groups/export/", views.export_groups, name="export_groups"),
    path("logs/busiest/", charts.busiest, name="busiest"),
    path("logs/look/", views.keep_look, name="keep_look"),
    path("logs/views/", saved_views.save, name="save_view"),
    path("logs/views/<uuid:pk>/", saved_views.saved_view, name="view"),
    path("logs/proof/", proof.proof, name="proof"),
    path("logs/proof/export/", proof.export_proof, name="export_proof"),
    path("logs/proof/verify_export.py", proof.verifier, name="verifier"),
    path("logs/proof/checkpoint-key.pem", proof.public_key, name="public_key"),
    path("logs/what-if/", what_if.what_if, name="what_if"),
    path("logs/remedy/", what_if.remedy, name="remedy"),
    path("logs/sessions/<uuid:pk>/", waterfall.session, name="session"),
    path("logs/<uuid:uid>/", views.call, name="call"),
    path("logs/<uuid:uid>/now/", views.now, name="now"),
    path("settings/calls", own_calls.listing, name="own"),
    path("settings/calls/<uuid:uid>/", own_calls.one, name="own_call"),
    path("settings/calls/wait", own_calls.waiting, name="wait"),
    path("settings/admin-events/", events.listing, name="events"),
    path("settings/admin-events/export/", events.export_events, name="export_events"),
    path("settings/admin-events/<uuid:uid>/", events.detail, name="event"),
]
