"""An authorization server of Django OAuth Toolkit: a Django project in one file, on the given port.

Clients can register themselves. Two clients exist from the start, with the secret CLIENT_SECRET: `entered`, registered
by hand for REDIRECT_URIS; and `resource`, which the protected server uses to introspect tokens. Anybody may sign in
under any name.
"""

import os
import sys
import tempfile
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token
from django.shortcuts import redirect
from django.urls import include, path

SECRET = os.environ["CLIENT_SECRET"]
PAGE = (
    '<!doctype html><form method="post"><input type="hidden" name="csrfmiddlewaretoken" value="{}">'
    '<input name="username"><button>Sign in</button></form>'
)
APPS = ("contenttypes", "auth", "sessions")

urlpatterns: list[Any] = []


def configure(folder: Path) -> None:
    settings.configure(
        SECRET_KEY=SECRET,
        ALLOWED_HOSTS=["127.0.0.1"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "db.sqlite3")}},
        INSTALLED_APPS=[*(f"django.contrib.{app}" for app in APPS), "oauth2_provider"],
        MIGRATION_MODULES=dict.fromkeys([*APPS, "oauth2_provider"]),  # Create the tables without migrations.
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        ROOT_URLCONF="__main__",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # A fast hasher for client secrets.
        LOGIN_URL="/login/",
        USE_TZ=True,
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        OAUTH2_PROVIDER={
            "SCOPES": {"tools": "Call tools", "introspection": "Ask about tokens"},
            "DCR_ENABLED": True,
            "DCR_REGISTRATION_PERMISSION_CLASSES": ("oauth2_provider.dcr.AllowAllDCRPermission",),
            "ALLOWED_SCHEMES": ["http", "https"],
            "REFRESH_TOKEN_REUSE_PROTECTION": True,
            "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
            "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
        },
    )


def fill() -> None:
    from oauth2_provider.models import Application

    call_command("migrate", run_syncdb=True, verbosity=0)
    common = {"client_type": Application.CLIENT_CONFIDENTIAL, "client_secret": SECRET}
    Application.objects.create(
        client_id="entered",
        authorization_grant_type=Application.GRANT_AUTHORIZATION_CODE,
        redirect_uris=os.environ["REDIRECT_URIS"],
        **common,
    )
    Application.objects.create(
        client_id="resource", authorization_grant_type=Application.GRANT_CLIENT_CREDENTIALS, **common
    )


def login(request: HttpRequest) -> HttpResponse:
    """Sign in under the given name, without a check."""
    from django.contrib.auth import login as remember
    from django.contrib.auth.models import User

    if request.method == "GET":
        return HttpResponse(PAGE.format(get_token(request)))
    name = request.POST["username"]
    user: Any = User.objects.get_or_create(username=name, defaults={"email": f"{name}@issuer.example.com"})[0]
    remember(request, user)
    return redirect(request.GET["next"])


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="issuer-") as folder:
        configure(Path(folder))
        django.setup()
        fill()
        urlpatterns += [path("login/", login), path("", include("oauth2_provider.urls"))]
        with make_server("127.0.0.1", int(sys.argv[1]), get_wsgi_application(), Server, Quiet) as server:
            server.serve_forever()
