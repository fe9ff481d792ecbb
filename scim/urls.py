from django.urls import path, re_path

from scim import views

app_name = "scim"

urlpatterns = [
    re_path(r"^scim/v2(?:/.*)?$", views.endpoint, name="endpoint"),
    path("settings/provisioning/", views.listing, name="list"),
    path("settings/provisioning/add/", views.create, name="add"),
    path("settings/provisioning/<uuid:pk>/", views.detail, name="key"),
    path("settings/provisioning/<uuid:pk>/roll/", views.roll, name="roll"),
    path("settings/provisioning/<uuid:pk>/end-previous/", views.end_previous, name="end_previous"),
    path("settings/provisioning/<uuid:pk>/revoke/", views.revoke, name="revoke"),
]
