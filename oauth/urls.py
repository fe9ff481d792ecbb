from django.urls import path

from oauth import client_views, consent, registrations_view, views

app_name = "oauth"

urlpatterns = [
    path("connect/", views.connect, name="connect"),
    path("connect/help/", client_views.how_to_connect, name="help"),
    path("connect/client/", client_views.client, name="client"),
    path("connect/<uuid:pk>/", views.gateway, name="gateway"),
    path("connect/<uuid:pk>/identity/<uuid:assignment>/", views.identity, name="identity"),
    path("connect/<uuid:pk>/allow/", consent.consent, name="consent"),
    path("connect/<uuid:pk>/token/", views.token, name="token"),
    path("hosts/<uuid:pk>/registrations/", registrations_view.listing, name="registered"),
]
