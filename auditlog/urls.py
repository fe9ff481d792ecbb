from django.urls import path

from auditlog import views

app_name = "auditlog"

urlpatterns = [
    path("logs/", views.calls, name="calls"),
    path("logs/<uuid:uid>/", views.call, name="call"),
]
