"""URL prefixes and the URL modules behind them."""

from allauth.account import views as account
from django.urls import URLPattern, URLResolver, include, path, re_path
from django.views.generic import RedirectView

from accounts import second_factor_views as second_factor
from accounts.sign_in_limits import posts_from_one_address, posts_of_one_person
from gatewayadmin import first_steps
from gatewayadmin.admin.base import site
from gatewayadmin.admin_server.views import add_gateway_admin
from gatewayadmin.doctor.views import doctor
from gatewayadmin.help import views as help_views
from gatewayadmin.overview import overview
from gatewayadmin.palette import palette
from gatewayadmin.password_reset import AskForReset, ChangePassword, SetPassword
from gatewayadmin.playground.views import playground
from gatewayadmin.shortcuts import go, keys
from sso.views import SignOut

_ROOMS = (
    "accounts",
    "hosts",
    "gateways",
    "servers",
    "connections",
    "rules",
    "tokens",
    "oauth",
    "auditlog",
    "sinks",
    "attention",
    "access",
    "configuration",
    "directory",
    "approvals",
    "scim",
    "sso",
)

# allauth's other views (changing one's own e-mail, signing in by mailed code) are not offered.
_signing_in = [
    path("login/", account.login, name="account_login"),
    path("logout/", SignOut.as_view(), name="account_logout"),
    path("signup/", account.signup, name="account_signup"),  # Sign-up is closed, but the sign-in page needs its URL.
    path("inactive/", account.account_inactive, name="account_inactive"),
    path(
        "reauthenticate/",
        posts_of_one_person("password again")(second_factor.PasswordAgain.as_view()),
        name="account_reauthenticate",
    ),
    path(
        "password/change/",
        posts_of_one_person("password change")(ChangePassword.as_view()),
        name="account_change_password",
    ),
    path("second-factor/", second_factor.Authenticate.as_view(), name="mfa_authenticate"),
    path("second-factor/again/", second_factor.CodeAgain.as_view(), name="mfa_reauthenticate"),
    path("second-factor/key/", second_factor.KeyAgain.as_view(), name="mfa_reauthenticate_webauthn"),
    path(
        "password/reset/",
        posts_from_one_address("reset, from one address")(AskForReset.as_view()),
        name="account_reset_password",
    ),
    path("password/reset/done/", account.password_reset_done, name="account_reset_password_done"),
    re_path(
        r"^password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$",
        posts_from_one_address("link, from one address")(SetPassword.as_view()),
        name="account_reset_password_from_key",
    ),
    path("password/reset/key/done/", account.password_reset_from_key_done, name="account_reset_password_from_key_done"),
]

_second_factor = [
    path("", second_factor.index, name="mfa_index"),
    path("activate/", second_factor.activate, name="mfa_activate_totp"),
    path("deactivate/", second_factor.deactivate, name="mfa_deactivate_totp"),
    path("codes/", second_factor.new_codes, name="mfa_generate_recovery_codes"),
    path("keys/add/", second_factor.add_key, name="mfa_add_webauthn"),
    path("keys/<int:pk>/rename/", second_factor.rename_key, name="mfa_rename_webauthn"),
    path("keys/<int:pk>/remove/", second_factor.remove_key, name="mfa_remove_webauthn"),
]

urlpatterns: list[URLPattern | URLResolver] = [
    path("", overview, name="overview"),
    path("find/", palette, name="palette"),
    path("keys/", keys, name="keys"),
    path("go/<slug:key>/", go, name="go"),
    path("help/", help_views.index, name="help"),
    path("help/files/<path:path>", help_views.file, name="help_file"),
    path("help/<path:path>.md", help_views.source, name="help_source"),
    path("help/<path:path>/", help_views.page, name="help_page"),
    path("llms.txt", help_views.llms, name="llms"),
    path("setup/", first_steps.steps, name="setup"),
    path("setup/dismiss/", first_steps.dismiss, name="dismiss_setup"),
    path("playground/", playground, name="playground"),
    path("servers/gateway-admin/add/", add_gateway_admin, name="add_gateway_admin"),
    path("accounts/", include(_signing_in)),
    path("settings/second-factor/", include(_second_factor)),
    path("settings/oauth-doctor/", doctor, name="doctor"),
    path("admin/password_change/", RedirectView.as_view(pattern_name="account_change_password"), name="staff_password"),
    path("admin/", site.urls),
    path("api/", include("gatewayadmin.rest.urls")),
    path("", include("oauth.endpoints")),
]
urlpatterns += [path("", include(f"{room}.urls")) for room in (*_ROOMS, "gatewayadmin.incident")]

handler400 = "gatewayadmin.rest.urls.refused"
handler403 = "ui.errors.permission_denied"
handler404 = "ui.errors.not_found"
handler500 = "gatewayadmin.rest.urls.failed"
