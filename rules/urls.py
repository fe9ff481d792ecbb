from django.urls import path

from rules import views

app_name = "rules"

urlpatterns = [
    path("rules/", views.listing, name="list"),
    path("rules/add/", views.add, name="add"),
    path("rules/names/", views.names, name="names"),
    path("rules/replay/", views.try_before, name="replay"),
    path("rules/<uuid:pk>/", views.edit, name="edit"),
    path("rules/<uuid:pk>/disable/", views.disable, name="disable"),
    path("rules/<uuid:pk>/enable/", views.enable, name="enable"),
    path("rules/<uuid:pk>/move/", views.move, name="move"),
    path("rules/<uuid:pk>/names/", views.names, name="names_of"),
    path("rules/<uuid:pk>/remove/", views.remove, name="remove"),
    path("rules/<uuid:pk>/replay/", views.try_before, name="replay_of"),
    path("rules/<uuid:pk>/turn-on/", views.turn_on, name="turn_on"),
    path("rules/<uuid:pk>/watch/", views.watch, name="watch"),
    path("gateways/<slug:slug>/rules/", views.of_gateway, name="of_gateway"),
]
