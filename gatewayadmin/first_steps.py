"""The first steps of a workspace. Their state is not stored, but derived from other rows and the settings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.db.models import Exists
from django.http import HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from accounts.models import User, WorkspaceSettings
from auditlog.models import ENDINGS, Call
from auditlog.own_calls import PATIENCE, OwnCall
from auditlog.paging import RECENT
from capabilities import Capability, requires
from connections.models import Connection
from gateways.models import Assignment
from oauth.client_metadata import LOOPBACK
from servers.models import BUILT_IN_URLS, Server
from ui.pages import AppRequest, answer, moment_of, show

# Users with one of these capabilities see all steps.
SETS_UP = (Capability.SERVERS_MANAGE, Capability.GATEWAYS_MANAGE, Capability.PEOPLE_MANAGE, Capability.WORKSPACE_MANAGE)


@dataclass(frozen=True)
class SetupStep:
    """One step: its texts, whether it is done, and the page and capability needed to do it."""

    name: str
    title: str
    text: str
    done: bool
    url: str = ""
    act: str = ""
    takes: Capability | None = None
    other: tuple[str, str] = ("", "")  # URL and label of another page on which to do the step.


@dataclass(frozen=True)
class Setup:
    """The steps as `viewer` sees them. The page polls for changes until the time `until`."""

    viewer: User
    facts: WorkspaceSettings
    until: datetime

    @classmethod
    def of(cls, viewer: User, until: datetime | None = None) -> Setup | None:
        """Return the steps; None if all steps are done, or if the steps were dismissed.

        Also return None if the viewer has no capability in SETS_UP.
        """
        if not any(map(viewer.has_perm, SETS_UP)):
            return None
        facts: Any = WorkspaceSettings.objects.annotate(**_facts(viewer)).filter(pk=1, setup_steps=True).first()
        if facts and not facts.has_call:
            facts.has_call = _answered().exists()
        latest = timezone.now() + PATIENCE
        setup = cls(viewer, facts, min(until or latest, latest)) if facts else None
        return setup if setup and not all(step.done for step in setup.steps) else None

    @cached_property
    def steps(self) -> list[SetupStep]:
        """All steps in their recommended order."""
        facts: Any = self.facts
        mail = [] if _is_local() else [_mail_step()]
        return [
            SetupStep(
                "server", "Add a server", "GitHub, Notion, Linear, or any MCP server of your own.", facts.has_server,
                reverse("servers:add"), "Add a server", Capability.SERVERS_MANAGE,
                (reverse("servers:bring"), "Add servers from a client's file"),
            ),
            SetupStep(
                "gateway", "Put the server on a gateway",
                "A gateway is one address for its servers. You choose who can use the gateway. Open "
                "or add a gateway, and press “Assign a server” on its Servers tab.",
                facts.has_place, reverse("gateways:list"), "Open gateways", Capability.GATEWAYS_MANAGE,
            ),
            SetupStep(
                "connection", "Connect an app or agent",
                "Any MCP client: authorize it in the browser, or give it a token.",
                facts.has_connection, reverse("oauth:client"), "Connect a client",
            ),
            SetupStep(
                "call", "Make the first call", "Ask the client something that needs a tool. The call appears here.",
                facts.has_call, reverse("oauth:client"), "Wait for the call",
            ),
            *mail,  # Mail comes before people, because invitations are mailed.
            SetupStep(
                "people", "Invite others", "With a role and a team, the invited people can connect at once.",
                facts.has_others, reverse("accounts:invite"), "Invite", Capability.PEOPLE_MANAGE,
            ),
        ]  # fmt: skip

    @property
    def rows(self) -> list[tuple[SetupStep, bool, bool]]:
        """Each step, whether it is the next one, and whether the viewer may do it."""
        following = next((step for step in self.steps if not step.done), None)
        return [
            (step, step == following, step.takes is None or self.viewer.has_perm(step.takes)) for step in self.steps
        ]

    @property
    def done_count(self) -> int:
        return sum(step.done for step in self.steps)

    def first_call(self) -> OwnCall | None:
        """Return the oldest logged call that was not denied, or None."""
        row = _answered().order_by("created_at").first()
        return OwnCall(row) if row else None

    @property
    def is_asleep(self) -> bool:
        """True if the page has stopped polling."""
        return timezone.now() >= self.until

    @property
    def mark(self) -> str:
        """An identifier of the shown state, to detect changes."""
        return f"{'.'.join(step.name for step in self.steps if step.done)}{'z' if self.is_asleep else ''}"

    @property
    def url(self) -> str:
        """The URL the page polls."""
        return f"{reverse('setup')}?{urlencode({'until': self.until.isoformat(), 'seen': self.mark})}"


def _facts(viewer: User) -> dict[str, Exists]:
    """Return annotations for a query of WorkspaceSettings. Each is True if the result of one step exists.

    `has_call` covers only recent calls.
    """
    placed = Assignment.objects.live().filter(gateway__archived_at=None)
    # Search recent partitions first: planning a query over all partitions takes longer than querying all these facts.
    lately = _answered().filter(created_at__gte=timezone.now() - RECENT)
    return {
        "has_server": Exists(Server.objects.live().exclude(url__in=BUILT_IN_URLS)),
        "has_place": Exists(placed.filter(server__archived_at=None).exclude(server__url__in=BUILT_IN_URLS)),
        "has_connection": Exists(Connection.objects.order_by()),
        "has_call": Exists(lately.order_by()),
        "has_others": Exists(User.objects.exclude(pk=viewer.pk)),
    }


def _answered() -> Any:
    return Call.objects.exclude(outcome__in=ENDINGS["denied"])


def _is_local() -> bool:
    """Return whether the public URL is a loopback address, where mail is not needed."""
    return urlsplit(settings.PUBLIC_URL).hostname in LOOPBACK


def _mail_step() -> SetupStep:
    return SetupStep(
        "mail", "Set a mail server", "Set GATEWAY_EMAIL_URL, so that invitations and password links are mailed.",
        bool(settings.MAIL_SERVER), reverse("accounts:workspace"), "Workspace settings", Capability.WORKSPACE_MANAGE,
    )  # fmt: skip


@never_cache
@require_GET
@requires(*SETS_UP)
def steps(request: AppRequest) -> HttpResponse:
    """Return the current steps to the polling page; 204 if nothing has changed."""
    setup = Setup.of(request.user, moment_of(request.GET, "until"))
    if request.htmx and setup and request.GET.get("seen") == setup.mark:
        return HttpResponse(status=204)
    return show(request, "setup_steps.html", {"setup": setup})


@require_POST
@requires(Capability.WORKSPACE_MANAGE)
def dismiss(request: AppRequest) -> HttpResponse:
    """Hide the steps for everybody. They can be shown again in the workspace settings."""
    WorkspaceSettings.edit(by=request.user, setup_steps=False)
    toast = "First steps hidden. You can show them again in Workspace settings."
    return answer(
        request,
        "setup_steps.html",
        {"setup": None, "dismissed": True, "fragment": True},
        to=reverse("overview"),
        toast=toast,
    )
