from django.urls import path

from configuration import views

app_name = "configuration"

urlpatterns = [
    path("gateways/<slug:slug>/yaml/", views.gateway, name="gateway"),
    path("servers/<slug:slug>/yaml/", views.server, name="server"),
    path("hosts/<uuid:pk>/yaml/", views.agent, name="agent"),
]
