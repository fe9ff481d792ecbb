from django.urls import path

from directory import registry, views

app_name = "directory"

_servers = "directory/<str:token>/v0.1/servers"
# The name of a server contains a slash, which some clients quote and others do not.
_versions = f"{_servers}/<path:name>/versions"

urlpatterns = [
    path("settings/directory/", views.listing, name="list"),
    path("settings/directory/add/", views.add, name="add"),
    path("settings/directory/<uuid:pk>/", views.detail, name="address"),
    path("settings/directory/<uuid:pk>/enable/", views.enable, name="enable"),
    path("settings/directory/<uuid:pk>/disable/", views.disable, name="disable"),
    path("settings/directory/<uuid:pk>/regenerate/", views.regenerate, name="regenerate"),
    path("settings/directory/<uuid:pk>/files/<slug:file>/", views.policy_file, name="file"),
    path(_servers, registry.servers, name="servers"),
    path(_versions, registry.versions, name="versions"),
    path(f"{_versions}/<str:version>", registry.version, name="version"),
]
