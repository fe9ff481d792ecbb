"""URLs of incidents: for each kind in SUBJECTS, the page about an object, and the page that stops this object."""

from django.urls import path

from gatewayadmin.incident.subjects import SUBJECTS
from gatewayadmin.incident.views import page, stop

app_name = "incident"

urlpatterns = [
    *(path(f"incident/{kind.place}/<uuid:pk>/", page(kind), name=kind.kind) for kind in SUBJECTS),
    *(path(f"incident/{kind.place}/<uuid:pk>/stop/", stop(kind), name=f"stop_{kind.kind}") for kind in SUBJECTS),
]
