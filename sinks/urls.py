from django.urls import path

from sinks import views

app_name = "sinks"

urlpatterns = [
    path("settings/sinks/", views.listing, name="list"),
    path("settings/sinks/add/", views.add, name="add"),
    path("settings/sinks/<uuid:pk>/", views.edit, name="sink"),
    path("settings/sinks/<uuid:pk>/test/", views.test, name="test"),
    path("settings/sinks/<uuid:pk>/send-now/", views.send_now, name="send_now"),
    path("settings/sinks/<uuid:pk>/disable/", views.disable, name="disable"),
    path("settings/sinks/<uuid:pk>/enable/", views.enable, name="enable"),
    path("settings/sinks/<uuid:pk>/remove/", views.remove, name="remove"),
]
