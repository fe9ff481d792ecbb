from django.urls import path

from hosts import views
from hosts.least_privilege import least_privilege

app_name = "hosts"

urlpatterns = [
    path("hosts/", views.listing, name="list"),
    path("switch/hosts/", views.switch, name="switch"),
    path("approve/hosts/", views.approve_picked, name="approve_picked"),
    path("archive/hosts/", views.archive_picked, name="archive_picked"),
    path("hosts/add/", views.add, name="add"),
    path("hosts/<uuid:pk>/", views.detail, name="detail"),
    path("hosts/<uuid:pk>/rename/", views.rename, name="rename"),
    path("hosts/<uuid:pk>/least-privilege/", least_privilege, name="least_privilege"),
    path("hosts/<uuid:pk>/logs/", views.logs, name="logs"),
    path("hosts/<uuid:pk>/enable/", views.enable, name="enable"),
    path("hosts/<uuid:pk>/disable/", views.disable, name="disable"),
    path("hosts/<uuid:pk>/archive/", views.archive, name="archive"),
    path("hosts/<uuid:pk>/approve/", views.approve, name="approve"),
    path("hosts/<uuid:pk>/enrolment/on/", views.enrolment, {"allow": True}, name="enrolment_on"),
    path("hosts/<uuid:pk>/enrolment/off/", views.enrolment, {"allow": False}, name="enrolment_off"),
]
