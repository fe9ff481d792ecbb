from django.urls import path

from accounts import joining, people_views, required_sign_in, role_views, views, workspace_views

app_name = "accounts"

urlpatterns = [
    path("accounts/join/", joining.join, name="join"),
    path("accounts/join/<str:key>/", joining.open_invitation, name="invitation"),
    path("accounts/required/", required_sign_in.required, name="required"),
    path("people/", people_views.listing, name="people"),
    path("people/deactivate/", people_views.deactivate_picked, name="deactivate_picked"),
    path("people/invite/", people_views.invite, name="invite"),
    path("people/<uuid:pk>/", people_views.detail, name="person"),
    path("people/<uuid:pk>/edit/", people_views.edit, name="edit_person"),
    path("people/<uuid:pk>/role/", people_views.change_role, name="change_role"),
    path("people/<uuid:pk>/invite/", people_views.invite_again, name="invite_again"),
    path("people/<uuid:pk>/decline-request/", people_views.decline_request, name="decline_request"),
    path("people/<uuid:pk>/invitation/revoke/", people_views.revoke_invitation, name="revoke_invitation"),
    path("people/<uuid:pk>/deactivate/", people_views.deactivate, name="deactivate"),
    path("people/<uuid:pk>/reactivate/", people_views.reactivate, name="reactivate"),
    path("people/<uuid:pk>/reset/", people_views.send_reset, name="send_reset"),
    path("people/<uuid:pk>/sign-out/", people_views.end_sessions, name="end_sessions"),
    path("people/<uuid:pk>/staff/on/", people_views.staff, {"staff": True}, name="staff_on"),
    path("people/<uuid:pk>/staff/off/", people_views.staff, {"staff": False}, name="staff_off"),
    path("people/<uuid:pk>/break-glass/on/", people_views.break_glass, {"on": True}, name="break_glass_on"),
    path("people/<uuid:pk>/break-glass/off/", people_views.break_glass, {"on": False}, name="break_glass_off"),
    path("people/<uuid:pk>/second-factor/", people_views.remove_second_factor, name="remove_second_factor"),
    path("people/roles/", role_views.listing, name="roles"),
    path("people/roles/add/", role_views.add, name="add_role"),
    path("people/roles/<uuid:pk>/", role_views.edit, name="role"),
    path("people/roles/<uuid:pk>/delete/", role_views.remove, name="remove_role"),
    path("people/capabilities/", role_views.reference, name="capabilities"),
    path("settings/ask-for", views.ask_for, name="ask_for"),
    path("settings/", views.settings_pages, name="settings"),
    path("settings/workspace", workspace_views.workspace, name="workspace"),
    path("settings/workspace/keep-logs", workspace_views.keep_logs, name="keep_logs"),
    path("settings/workspace/test-mail", workspace_views.test_mail, name="test_mail"),
    path("settings/profile", views.profile, name="profile"),
    path("settings/sessions", views.own_sessions, name="sessions"),
    path("settings/sessions/<int:pk>/end", views.end_session, name="end_session"),
    path("settings/sessions/end-all", views.sign_out_everywhere, name="sign_out_everywhere"),
]
