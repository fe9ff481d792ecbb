from django.urls import path

from tokens import views

app_name = "tokens"

urlpatterns = [
    path("tokens/<uuid:pk>/revoke/", views.revoke, name="revoke"),
]
