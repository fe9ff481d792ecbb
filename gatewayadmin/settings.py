"""All Django settings. Only this module reads settings of the installation from the environment."""

from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from wsgiref.headers import Headers

from django.utils.csp import CSP

from gatewayadmin.config import database, environment, keys, outbound, runner
from gatewayadmin.config.environment import (
    SHORTEST_PASSWORD,
    Refused,
    folder,
    networks,
    number,
    origins,
    secret,
    switch_value,
    text,
    web_address,
)
from wire import hosts

PACKAGE = Path(__file__).resolve().parent
BASE_DIR = PACKAGE.parent
IS_INSTALLED = (PACKAGE / "templates").is_dir()  # True in a wheel: its package contains templates, docs and static.
FILES = PACKAGE if IS_INSTALLED else BASE_DIR
DOCS = FILES / "docs"

# --- The installation ---------------------------------------------------------------------------------------------

DATA_DIR = folder("GATEWAY_DATA_DIR", "~/.local/share/gateway-admin" if IS_INSTALLED else str(BASE_DIR / "var"))
DATABASE_URL = secret("DATABASE_URL")
DIRECT_DATABASE_URL = secret("GATEWAY_DIRECT_DATABASE_URL")
READ_DATABASE_URL = secret("DATABASE_READ_URL")
READ_LAG_SECONDS = number("GATEWAY_READ_LAG_SECONDS", 10, low=1, high=600)
COMMIT = environment.commit(BASE_DIR)
PORT = number("PORT", 8000, low=1, high=65535)
WORKERS = number("GATEWAY_WORKERS", 0, low=1, high=1024)  # 0: the number of cores minus one.
DRAIN_SECONDS = number("GATEWAY_DRAIN_SECONDS", 0, low=0, high=300)
RECORD_CONNECTIONS = number("GATEWAY_RECORD_CONNECTIONS", 2, low=1, high=16)
WEB_CONNECTIONS = number("GATEWAY_WEB_CONNECTIONS", 4, low=1, high=64)
WAITING_CALLS = number("GATEWAY_WAITING_CALLS", 2000, low=1, high=100_000)

TOKEN_CALLS = number("GATEWAY_TOKEN_CALLS", 64, low=1, high=10_000)
BODY_MIB = number("GATEWAY_BODY_MIB", 4, low=1, high=64)
ANSWER_MIB = number("GATEWAY_ANSWER_MIB", 10, low=1, high=64)
ANSWERS_MIB = number("GATEWAY_ANSWERS_MIB", 128, low=max(16, ANSWER_MIB), high=65_536)
ANSWER_SECONDS = number("GATEWAY_ANSWER_SECONDS", 300, low=5, high=3600)
SESSION_HOURS = number("GATEWAY_SESSION_HOURS", 24, low=1, high=24 * 365)

PUBLIC_URL_IS_SET = bool(text("GATEWAY_PUBLIC_URL"))
PUBLIC_URL = web_address("GATEWAY_PUBLIC_URL", f"http://localhost:{PORT}")

ADMIN_EMAIL = environment.email("GATEWAY_ADMIN_EMAIL", "admin@localhost")
ADMIN_PASSWORD = environment.password("GATEWAY_ADMIN_PASSWORD")
QUICKSTART = switch_value("GATEWAY_QUICKSTART", default=True)
CLIENT_DOCUMENTS = switch_value("GATEWAY_CLIENT_DOCUMENTS", default=True)
METRICS_TOKEN = secret("GATEWAY_METRICS_TOKEN")
LOST_KEYS = text("GATEWAY_LOST_KEYS").replace(",", " ").split()  # Ids of keys: `serve` starts even if they are missing.
CHECKPOINT_KEY = keys.signing_key("GATEWAY_CHECKPOINT_KEY")
METRICS_NAMES = number("GATEWAY_METRICS_NAMES", 50, low=0, high=1000)
OUTBOUND_PROXY = outbound.outbound_proxy_settings()
TRACES = outbound.tracing_settings(OUTBOUND_PROXY)
OTEL_RESOURCE = outbound.resource()
ARCHIVE = environment.path_or_url("GATEWAY_ARCHIVE")
ARCHIVE_KEYS = secret("GATEWAY_ARCHIVE_KEYS")
API_KEY = secret("GATEWAY_API_KEY")  # For the commands with --url, which use another installation.
WELL_KNOWN_SERVERS = environment.file("GATEWAY_WELL_KNOWN_SERVERS")
SERVER_REGISTRY = web_address("GATEWAY_SERVER_REGISTRY", "")
# If a repository clone has this file, `serve` starts a runner with it, unless GATEWAY_RUNNER_URL names another runner.
RUNNER_FILE = BASE_DIR / "runner.yaml"
RUNNER = runner.of_environment()
STARTS_RUNNER = RUNNER is None and not IS_INSTALLED and RUNNER_FILE.is_file()
if STARTS_RUNNER:
    RUNNER = runner.of_clone(RUNNER_FILE, DATA_DIR / "keys")
FAST_HTTP = switch_value("GATEWAY_FAST_HTTP", default=True)
HELP_IS_PUBLIC = switch_value("GATEWAY_HELP_PUBLIC", default=False)
REPORT_URL = environment.link("GATEWAY_REPORT_URL")
LOG_REQUESTS = switch_value("GATEWAY_LOG_REQUESTS", default=False)
PRIVATE_UPSTREAMS = networks("GATEWAY_PRIVATE_UPSTREAMS")
PRIVATE_ISSUERS = origins("GATEWAY_PRIVATE_ISSUERS")
TRUSTED_PROXIES = networks("GATEWAY_TRUSTED_PROXIES")
ALLOWED_ORIGINS = origins("GATEWAY_ALLOWED_ORIGINS")

_keys = (
    keys.from_environment()
    if DATABASE_URL
    else keys.kept_in(DATA_DIR / "keys", begun=(DATA_DIR / "postgres" / "PG_VERSION").exists())
)
SECRET_KEY = _keys.secret
TOKEN_KEYS = _keys.tokens
ENCRYPTION_KEYS = _keys.encryption

database.require_url(DATABASE_URL, DIRECT_DATABASE_URL, READ_DATABASE_URL)
DATABASES = {
    "default": database.configuration(
        DATABASE_URL, DATA_DIR, web_connections=WEB_CONNECTIONS, direct_url=DIRECT_DATABASE_URL
    )
}
# The database of pages if they use a pooler, and the replica that logs are read from.
PAGES_DATABASE = database.pages(DATABASE_URL, web_connections=WEB_CONNECTIONS) if DIRECT_DATABASE_URL else None
READ_DATABASE = database.replica(READ_DATABASE_URL, web_connections=WEB_CONNECTIONS) if READ_DATABASE_URL else None

# --- Addresses ----------------------------------------------------------------------------------------------------

_public = urlsplit(PUBLIC_URL)
_is_https = _public.scheme == "https"
LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]
_host = hosts.canonical_host(str(_public.hostname))
ALLOWED_HOSTS = LOOPBACK_NAMES if _host in LOOPBACK_NAMES else [_host]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]

# --- Mail ---------------------------------------------------------------------------------------------------------

MAILERS = outbound.mailers(secret("GATEWAY_EMAIL_URL"))
MAIL_SERVER = outbound.server_of(MAILERS)  # Without a mail server, no page says that a link is mailed.
EMAIL_FROM_IS_SET = bool(text("GATEWAY_EMAIL_FROM"))
DEFAULT_FROM_EMAIL = SERVER_EMAIL = outbound.sender(text("GATEWAY_EMAIL_FROM"), str(_public.hostname))

if (_sentence := environment.misspelled()) is not None:
    raise Refused(_sentence)

# --- Django -------------------------------------------------------------------------------------------------------

DEBUG = False
ROOT_URLCONF = "gatewayadmin.urls"
ASGI_APPLICATION = "gatewayadmin.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "gatewayadmin",
    "ui",
    "capabilities",
    "auditlog",
    "accounts",
    "servers",
    "servers.oauth_client",
    "gateways",
    "hosts",
    "connections",
    "rules",
    "approvals",
    "tokens",
    "oauth",
    "sinks",
    "attention",
    "access",
    "scim",
    "sso",
    "configuration",
    "directory",
    "proxy",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "rest_framework",
    "drf_spectacular",
    "django_htmx",
    "oauth2_provider",
    "servestatic",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "ui.middleware.Compression",
    "ui.middleware.static_files_only",
    "ui.middleware.deep_calls",
    "ui.databases.released",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "gatewayadmin.middleware.note_person",
    "accounts.sessions.session_limits",
    "accounts.queues.in_turn",
    "django_htmx.middleware.HtmxMiddleware",
    "ui.middleware.htmx_redirects",
    "ui.middleware.try_later",
    "accounts.views.SignInFirst",
    "accounts.required_sign_in.RequiredSignInFirst",
    "gatewayadmin.middleware.note_origin",
    "gatewayadmin.middleware.note_refusals",
    "auditlog.replica.note_writes",
    "allauth.account.middleware.AccountMiddleware",
    "configuration.by_hand.ask_before_hand_changes",
    "accounts.held_forms.hold_forms",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "ui.middleware.forms_only",
]

TEMPLATES = [
    {
        "BACKEND": "ui.rendering.Templates",
        "NAME": "django",  # Libraries expect this name.
        "DIRS": [FILES / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "capabilities.can",
                "gatewayadmin.overview.attention",
                "gatewayadmin.help.topics.guide",
                "gatewayadmin.shortcuts.letters",
                "auditlog.replica.lag",
            ]
        },
    }
]

CACHES = {
    # All workers share this cache, because it stores used codes. MCP requests never read this cache.
    "default": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "cache",
        "OPTIONS": {"MAX_ENTRIES": 20_000},  # If there are more, Django deletes a third of them.
    }
}

# Larger uploads are written to disk as they arrive: unauthenticated clients may send many at once.
FILE_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

STATIC_URL = "/static/"
STATICFILES_DIRS = [] if IS_INSTALLED else [BASE_DIR / "static"]  # In a wheel, the package contains the files.
SERVESTATIC_USE_FINDERS = True  # A fresh clone serves its files without a collecting step.
SERVESTATIC_AUTOREFRESH = False


def keep_fonts(headers: Headers, path: str, url: str) -> None:
    """Let browsers cache fonts for a year, because the name of a font contains a hash of its content."""
    if path.endswith(".woff2"):
        headers["Cache-Control"] = "public, max-age=31536000, immutable"


SERVESTATIC_ADD_HEADERS_FUNCTION = keep_fonts

# --- Signing in ---------------------------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["accounts.backend.RoleBackend"]
PASSWORD_HASHERS = ["accounts.queues.QueuedArgon2Hasher", "oauth.client_metadata.ClientSecretHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": SHORTEST_PASSWORD},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
# The lifetime of invitation links. Reset links have less: accounts.password_links limits them to one hour.
PASSWORD_RESET_TIMEOUT = int(timedelta(hours=72).total_seconds())
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "overview"
LOGOUT_REDIRECT_URL = "account_login"

ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_EMAIL_VERIFICATION = "none"  # People are invited; nobody signs up.
ACCOUNT_ADAPTER = "accounts.sign_in.AccountAdapter"
ACCOUNT_FORMS = {
    "login": "accounts.sign_in.SignInForm",
    "reset_password": "accounts.sign_in.ForgottenForm",
    "reset_password_from_key": "accounts.sign_in.NewPasswordForm",
    "change_password": "accounts.sign_in.OtherPasswordForm",
    "reauthenticate": "accounts.sign_in.ConfirmPasswordForm",
}
ACCOUNT_DEFAULT_HTTP_PROTOCOL = _public.scheme
ACCOUNT_PASSWORD_RESET_TOKEN_GENERATOR = "accounts.password_links.LinkTokens"
ACCOUNT_REAUTHENTICATION_TIMEOUT = int(timedelta(minutes=15).total_seconds())
# With allauth's limits, requests wait for each other while each holds a database connection. Our own limits are in
# accounts.sign_in_limits.
ACCOUNT_RATE_LIMITS = False

MFA_ADAPTER = "accounts.second_factor.Adapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_FORMS = {
    "activate_totp": "accounts.second_factor.ActivateForm",
    "authenticate": "accounts.second_factor.CodeForm",
    "reauthenticate": "accounts.second_factor.CodeAgainForm",
    "add_webauthn": "accounts.second_factor.AddKeyForm",
    "authenticate_webauthn": "accounts.second_factor.SecurityKeyForm",
    "reauthenticate_webauthn": "accounts.second_factor.KeyAgainForm",
}
MFA_ALLOW_UNVERIFIED_EMAIL = True  # People cannot enter their own address: an administrator or directory does.
MFA_RECOVERY_CODES_SHOW_ONCE = True
MFA_TOTP_TOLERANCE = 1  # Accept the previous and the next code, too: typing takes time, and clocks differ.

SESSION_COOKIE_NAME = "gateway_session"
SESSION_COOKIE_AGE = int(timedelta(days=7).total_seconds())
SESSION_COOKIE_SECURE = _is_https
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_NAME = "gateway_csrf"
CSRF_COOKIE_SECURE = _is_https
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_FAILURE_VIEW = "ui.errors.csrf_failure"

# --- Security headers ---------------------------------------------------------------------------------------------

SECURE_CSP = {
    "default-src": [CSP.SELF],
    "script-src": [CSP.SELF],
    "style-src": [CSP.SELF],
    "img-src": [CSP.SELF],
    "font-src": [CSP.SELF],
    "connect-src": [CSP.SELF],
    "object-src": [CSP.NONE],
    "base-uri": [CSP.NONE],
    "form-action": [CSP.SELF],
    "frame-ancestors": [CSP.NONE],
}
# TLS ends at the operator's proxy, which also redirects from http. The domain's owner decides whether HSTS includes
# subdomains and preloading. oauth2_provider.W008: see the last lines of OAUTH2_PROVIDER.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W008", "security.W021", "oauth2_provider.W008"]
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_HSTS_SECONDS = int(timedelta(days=365).total_seconds()) if _is_https else 0

# --- REST and OAuth -----------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["tokens.authentication.BearerAuthentication", "ui.rest_requests.SessionCookie"],
    "DEFAULT_PERMISSION_CLASSES": [
        "accounts.required_sign_in.RequiredSignInForSessions",
        "capabilities.rest.HasCapability",
        "accounts.sign_in.RecentPassword",
    ],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["ui.rest_requests.Json"],
    "DEFAULT_SCHEMA_CLASS": "gatewayadmin.rest.openapi.OperationSchema",
    "EXCEPTION_HANDLER": "ui.rest.problem",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "URL_FORMAT_OVERRIDE": None,  # `format` is a parameter of our own.
}

SPECTACULAR_SETTINGS = {
    "TITLE": "Gateway Admin",
    "VERSION": "1",
    "DESCRIPTION": "Programs can do almost everything that the pages do. Errors have a `detail` in words and a stable "
    "`code`.",
    "LICENSE": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    "CONTACT": {"name": "Gateway Admin", "url": f"{PUBLIC_URL}/api/docs/"},
    "OAS_VERSION": "3.1.0",
    "SERVERS": [{"url": PUBLIC_URL}],
    "SCHEMA_PATH_PREFIX": "/api/",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENFORCE_NON_BLANK_FIELDS": True,
    "ENABLE_DJANGO_DEPLOY_CHECK": False,  # It would generate the API description at every start. A test does so.
    "POSTPROCESSING_HOOKS": ["gatewayadmin.rest.openapi.closed"],
}

OAUTH2_PROVIDER_APPLICATION_MODEL = "oauth2_provider.Application"
OAUTH2_PROVIDER_GRANT_MODEL = "oauth2_provider.Grant"
OAUTH2_PROVIDER_ACCESS_TOKEN_MODEL = "oauth2_provider.AccessToken"
OAUTH2_PROVIDER_REFRESH_TOKEN_MODEL = "oauth2_provider.RefreshToken"
OAUTH2_PROVIDER_ID_TOKEN_MODEL = "oauth2_provider.IDToken"
OAUTH2_PROVIDER = {
    "OAUTH2_VALIDATOR_CLASS": "oauth.validator.Validator",
    "OAUTH2_SERVER_CLASS": "oauth.validator.AuthorizationServer",
    "ACCESS_TOKEN_GENERATOR": "oauth.validator.access_token",
    "REFRESH_TOKEN_GENERATOR": "oauth.validator.refresh_token",
    "OIDC_ISS_ENDPOINT": PUBLIC_URL,
    "SCOPES": {"mcp": "Use the tools of the gateway you choose"},
    "DEFAULT_SCOPES": ["mcp"],
    "AUTHORIZATION_CODE_EXPIRE_SECONDS": 60,
    "PKCE_REQUIRED": True,
    "ROTATE_REFRESH_TOKEN": True,
    "REFRESH_TOKEN_REUSE_PROTECTION": True,
    "ALLOWED_REDIRECT_URI_SCHEMES": ["https", "http", "cursor", "vscode", "vscode-insiders"],
    "ALLOW_LOCALHOST_LOOPBACK": True,
    "DCR_ENABLED": True,
    "DCR_REGISTRATION_PERMISSION_CLASSES": ("oauth2_provider.dcr.AllowAllDCRPermission",),
    "CLIENT_SECRET_HASHER": "client_secret",
    "CIMD_ENABLED": False,  # oauth.client_documents fetches documents when a person connects an app, and caches them.
    "COMPLIANT_BCP_RFC9700_IMPLICIT_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PASSWORD_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
    "COMPLIANT_BCP_RFC9700_ACCESS_TOKEN_TRANSPORT": True,
    "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
    "COMPLIANT_BCP_RFC9700_TOKEN_STORAGE": True,
    "COMPLIANT_BCP_RFC9700_REFRESH_TOKEN": True,
    "COMPLIANT_BCP_RFC9700_REDIRECT_URI_MATCHING": True,
    "COMPLIANT_BCP_RFC9700_PKCE_REQUIRED": True,
    # COMPLIANT_BCP_RFC9700_REDIRECT_URI_SCHEME stays off: native apps listen on loopback http. Our
    # registration check refuses http everywhere else.
}

# --- Logs ---------------------------------------------------------------------------------------------------------

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "gatewayadmin.serving.log_format.JsonFormatter"}},
    "filters": {"one_line": {"()": "gatewayadmin.serving.log_format.OneLine"}},
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "json"},
        "stderr_one_line": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["one_line"]},
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "django.server": {"handlers": [], "level": "WARNING", "propagate": True},
        # Bad requests, which any client can send in large numbers.
        "django.security": {"handlers": ["stderr_one_line"], "level": "WARNING", "propagate": False},
        "django.request": {"level": "ERROR"},  # Nobody needs to act on a 404.
        "gatewayadmin.middleware": {"level": "INFO" if LOG_REQUESTS else "WARNING"},
        "fido2": {"level": "WARNING"},  # Logs every key that is used.
        "httpx": {"level": "WARNING"},  # Logs every URL with its query.
        "psycopg.pool": {"level": "ERROR"},
    },
}
