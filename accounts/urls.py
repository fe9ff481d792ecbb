from django.urls import path

from accounts import views

app_name = "accounts"

urlpatterns = [
    path("settings/profile", views.profile, name="profile"),
    path("settings/sessions", views.own_sessions, name="sessions"),
    path("settings/sessions/<int:pk>/end", views.end_session, name="end_session"),
    path("settings/sessions/end-all", views.sign_out_everywhere, name="sign_out_everywhere"),
]
