from django.urls import path

from attention import views

app_name = "attention"

urlpatterns = [
    path("attention/", views.needs_attention, name="page"),
    path("settings/notifications", views.notifications, name="notifications"),
    path("settings/notifications/add", views.add, name="add"),
    path("settings/notifications/mail", views.own_mail, name="own_mail"),
    path("settings/notifications/<uuid:pk>", views.edit, name="channel"),
    path("settings/notifications/<uuid:pk>/test", views.test, name="test"),
    path("settings/notifications/<uuid:pk>/remove", views.remove, name="remove"),
]
