"""URLs of the Approvals pages."""

from django.urls import path

from approvals import views

app_name = "approvals"

urlpatterns = [
    path("approvals/", views.waiting, name="waiting"),
    path("approvals/decided/", views.decided, name="decided"),
    path("approvals/allowed/", views.allowed, name="allowed"),
    path("approvals/allowed/<uuid:pk>/end/", views.end_allowance, name="end_allowance"),
    path("approvals/<uuid:pk>/", views.detail, name="hold"),
    path("approvals/<uuid:pk>/decide/", views.decide, name="decide"),
    path("approvals/<uuid:pk>/wait/", views.wait, name="wait"),
    path("approvals/<uuid:pk>/withdraw/", views.withdraw, name="withdraw"),
]
