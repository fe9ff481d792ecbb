"""The page of the workspace settings."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from accounts.mail import send_test_mail
from accounts.models import NewAppPolicy, WorkspaceSettings
from accounts.models.workspace import LEAST_PAYLOAD, MOST_PAYLOAD, check_zone
from accounts.rules import NoOrganisation, PeopleError, RequiredSignIn
from accounts.sign_in import ask_again
from auditlog.models import Call
from capabilities import Capability, requires
from sinks.archive import archive_place
from ui.forms import LimitField
from ui.pages import AppRequest, leave, posted, seen_version, show
from ui.viewset import form_page

GROUPS: dict[str, tuple[str, ...]] = {
    "Workspace": ("name", "new_app_policy", "required_sign_in", "zone", "setup_steps"),
    "Tokens": ("allow_non_expiring_tokens", "oauth_access_token_seconds", "oauth_refresh_idle_days"),
    "Logs": ("log_retention_days", "record_payloads", "payload_limit_bytes"),
    "Rate limits at /mcp": ("calls_per_minute", "token_calls_per_minute"),
}


class WorkspaceForm(forms.Form):
    """The settings that can be changed while the gateway runs. An empty limit means no limit."""

    name = forms.CharField(max_length=80, help_text="Shown in authenticator apps.")
    new_app_policy = forms.ChoiceField(
        label="New apps",
        choices=NewAppPolicy.choices,
        widget=forms.RadioSelect,
        help_text="What happens when an app connects for the first time. Existing apps are not affected.",
    )
    required_sign_in = forms.ChoiceField(
        label="Required of everybody",
        choices=RequiredSignIn.choices,
        help_text="Pages open only after this sign-in. Tokens and API keys work without it. Roles can also require it.",
    )
    zone = forms.CharField(
        label="Time zone",
        max_length=64,
        validators=[check_zone],
        help_text="Such as Europe/Berlin. Rules on tool calls use this time zone for hours and days.",
    )
    setup_steps = forms.BooleanField(
        label="Show the first steps",
        required=False,
        help_text="Administrators see the steps on the dashboard until all are done.",
    )
    allow_non_expiring_tokens = forms.BooleanField(
        label="Allow tokens that never expire",
        required=False,
        help_text=(
            "Offers “No expiry” for new tokens, besides 7, 30 and 90 days. If you disable this later, tokens without "
            "expiry keep working but are marked."
        ),
    )
    oauth_access_token_seconds = forms.IntegerField(
        label="Lifetime of an app's access token",
        min_value=60,
        max_value=3600,
        help_text="Seconds, from 60 to 3600. Apps renew their access tokens by themselves.",
    )
    oauth_refresh_idle_days = forms.IntegerField(
        label="An unused app must sign in again after",
        min_value=1,
        max_value=365,
        help_text="Days, from 1 to 365. An app counts as unused while it does not renew its access token.",
    )
    log_retention_days = forms.IntegerField(
        label="Keep logs for",
        min_value=1,
        max_value=3650,
        help_text=(
            "Days, from 1 to 3650. Calls are deleted in blocks. A block has the calls of one day if you enter up to "
            "100 days, of one week up to 730 days, and of one month above 730 days. Admin events are kept for ever. "
            "If you shorten the time, the change takes effect after a day."
        ),
    )
    record_payloads = forms.BooleanField(
        label="Record payloads",
        required=False,
        help_text=(
            "Records arguments and results of calls. If a call is refused because of its token, person, agent, gateway "
            "or rate limit, its payload is not recorded. Only people who may view recorded payloads see them. "
            "Recognised passwords, tokens and credentials are removed first; other private text stays."
        ),
    )
    payload_limit_bytes = forms.IntegerField(
        label="Size limit of recorded payloads",
        min_value=LEAST_PAYLOAD,
        max_value=MOST_PAYLOAD,
        help_text="Bytes, from 256 to 65,536; longer payloads are cut.",
    )
    calls_per_minute = LimitField(
        "Calls per minute, all tokens together",
        "Empty: no limit. Above the limit, callers get 429 with Retry-After.",
    )
    token_calls_per_minute = LimitField(
        "Calls per minute and token",
        "Empty: no limit. Gateways and tokens can have their own limits; the lowest applies.",
    )

    def __init__(self, data: Any, *, workspace: WorkspaceSettings) -> None:
        super().__init__(data, initial={name: getattr(workspace, name) for name in self.base_fields})
        if oldest := Call.objects.oldest():
            self.fields["log_retention_days"].help_text += f" The oldest call is from {oldest:%Y-%m-%d}."

    def groups(self) -> dict[str, list[forms.BoundField]]:
        return {heading: [self[name] for name in names] for heading, names in GROUPS.items()}


@require_http_methods(["GET", "POST"])
@requires(Capability.WORKSPACE_READ)
@requires(Capability.WORKSPACE_MANAGE, to_change=True)
@ask_again
def workspace(request: AppRequest) -> HttpResponse:
    current = WorkspaceSettings.load()
    form = WorkspaceForm(posted(request), workspace=current)

    def save() -> HttpResponse:
        WorkspaceSettings.edit(by=request.user, seen=seen_version(request), **form.cleaned_data)
        return leave(request, reverse("accounts:workspace"), "Settings saved")

    return form_page(
        request,
        "accounts/workspace.html",
        form,
        save,
        {NoOrganisation: "required_sign_in"},
        **_context(current),
    )


@require_POST
@requires(Capability.WORKSPACE_MANAGE)
def keep_logs(request: AppRequest) -> HttpResponse:
    """Cancel the pending change to a shorter log retention."""
    revoked = WorkspaceSettings.keep_logs(by=request.user)
    return leave(
        request, reverse("accounts:workspace"), "Logs are kept" if revoked else "No shorter retention was waiting"
    )


@require_POST
@requires(Capability.WORKSPACE_MANAGE)
def test_mail(request: AppRequest) -> HttpResponse:
    """Send a test mail to the signed-in person, and show the result."""
    current = WorkspaceSettings.load()
    context = _context(current) | {"form": WorkspaceForm(None, workspace=current)}
    try:
        outcome = send_test_mail(by=request.user)
    except PeopleError as error:
        context |= {"mail_sent": False, "mail_detail": str(error)}
    else:
        context |= {"mail_sent": outcome.sent, "mail_detail": outcome.detail}
    return show(request, "accounts/workspace.html", context)


def _context(workspace: WorkspaceSettings) -> dict[str, Any]:
    """Return the page's context: the settings, a pending shorter log retention, and the settings fixed at startup."""
    return {
        "workspace": workspace,
        "version": workspace.version,
        "dropping": workspace.dropping,
        "private": settings.PRIVATE_UPSTREAMS,
        "outbound_proxy": settings.OUTBOUND_PROXY,
        "public_url": settings.PUBLIC_URL,
        "archive": archive_place(),
        "mail_server": settings.MAIL_SERVER,
        "mail_from": settings.DEFAULT_FROM_EMAIL,
    }
