"""Delete expired codes, ended tokens, unused registrations, and old counters of rate limits.

Each function returns the number of rows that it deleted. A function deletes at most MAX_ROWS rows per call; only
`attempts` has no limit. A token family is all access and refresh tokens of one authorization.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import Exists, F, Model, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce
from oauth2_provider.models import AccessToken, Application, Grant, RefreshToken

from accounts.models import Attempt, WorkspaceSettings
from accounts.models.attempts import HOUR
from oauth.models import AuthorizeRequest

MAX_ROWS = 5_000
UNUSED = timedelta(days=1)  # Registrations that were never connected are deleted after this time.
KEPT_AFTER_END = timedelta(days=1)  # Ended tokens stay this long, so that the log can say why they are refused.

SELF_MADE = (Application.RegistrationSource.DCR, Application.RegistrationSource.CIMD)


def codes(now: datetime) -> int:
    """Delete expired codes. A code that was used is already deleted; only its digest remains."""
    return _delete(Grant.objects.filter(expires__lt=now))


def refresh_tokens(now: datetime) -> int:
    """Delete refresh tokens that can no longer be used.

    These are the tokens that are older than the workspace allows, and the tokens whose family or connection was revoked
    more than KEPT_AFTER_END ago.
    """
    alive = RefreshToken.objects.filter(token_family=OuterRef("token_family"), revoked=None)
    # A used token of a live family is kept, because using it again must end the family.
    is_ended = Q(revoked__lt=now - KEPT_AFTER_END) & ~Exists(alive)
    is_revoked = Q(binding__connection__revoked_at__lt=now - KEPT_AFTER_END)
    return _delete(RefreshToken.objects.filter(Q(created__lte=now - _idle()) | is_ended | is_revoked))


def access_tokens(now: datetime) -> int:
    """Delete access tokens that expired more than KEPT_AFTER_END ago, except the last one of each live token family.

    The last access token remains, because an app may use it to revoke the family.
    """
    last = Q(refresh_token__isnull=False, refresh_token__revoked=None)
    return _delete(AccessToken.objects.filter(expires__lt=now - KEPT_AFTER_END).exclude(last))


def registrations(now: datetime) -> int:
    """Delete registrations that apps made themselves, and that have no code, token or flow in progress.

    A registration that was never connected is deleted after UNUSED. Any other registration is deleted when it has not
    been used for the lifetime of a refresh token.
    """
    of_this = {"application": OuterRef("pk")}
    last_used = Coalesce(F("registration__last_used_at"), F("created"))
    unused = Application.objects.filter(registration_source__in=SELF_MADE, created__lt=now - UNUSED).exclude(
        Exists(Grant.objects.filter(**of_this))
        | Exists(RefreshToken.objects.filter(**of_this))
        | Exists(AccessToken.objects.filter(**of_this, binding__isnull=False))
        | Exists(AuthorizeRequest.objects.filter(**of_this, expires_at__gt=now))
    )
    never = Q(registration__host=None)
    # An app that has connected once may return, so it is kept for the lifetime of a refresh token after its last use.
    return _delete(unused.annotate(used_at=last_used).filter(never | Q(used_at__lt=now - _idle())))


def attempts(now: datetime) -> int:
    """Delete counters of rate limits whose time window began more than an hour ago."""
    return Attempt.objects.filter(since__lt=now - HOUR).delete()[0]


def _idle() -> timedelta:
    return timedelta(days=WorkspaceSettings.load().oauth_refresh_idle_days)


def _delete[M: Model](rows: QuerySet[M]) -> int:
    pks = list(rows.values_list("pk", flat=True)[:MAX_ROWS])
    _, deleted = rows.model._default_manager.filter(pk__in=pks).delete()
    return deleted.get(rows.model._meta.label, 0)
