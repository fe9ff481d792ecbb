from django.urls import path

from oauth import consent, views

app_name = "oauth"

urlpatterns = [
    path("connect/", views.connect, name="connect"),
    path("connect/help/", views.how_to_connect, name="help"),
    path("connect/client/", views.client, name="client"),
    path("connect/<uuid:pk>/", views.gateway, name="gateway"),
    path("connect/<uuid:pk>/identity/<uuid:assignment>/", views.identity, name="identity"),
    path("connect/<uuid:pk>/allow/", consent.consent, name="consent"),
    path("connect/<uuid:pk>/token/", views.token, name="token"),
    path("hosts/<uuid:pk>/registrations/", views.listing, name="registered"),
]
