from django.urls import path

from sso import views

app_name = "sso"

urlpatterns = [
    path("accounts/organisation/", views.begin, name="begin"),
    path("accounts/organisation/back/", views.callback, name="callback"),
    path("accounts/organisation/confirm/", views.confirm, name="confirm"),
    path("accounts/organisation/logout/", views.backchannel_logout, name="backchannel_logout"),
    path("accounts/organisation/saml/", views.saml_answered, name="saml_answered"),
    path("accounts/organisation/saml/acs/", views.saml_consumer, name="saml_consumer"),
    path("accounts/organisation/saml/metadata/", views.saml_metadata, name="saml_metadata"),
    path("settings/organisation/", views.settings_page, name="settings"),
    path("settings/organisation/test/", views.test_provider, name="test"),
    path("settings/organisation/link/", views.link, name="link"),
    path("settings/organisation/unlink/", views.unlink, name="unlink"),
]
