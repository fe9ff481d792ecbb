"""The page *Configuration*: export the workspace as a file, show the plan of a file, and apply the plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from accounts.sign_in import ask_again
from capabilities import requires
from capabilities.catalogue import SEES_CONFIGURATION
from configuration import document, words
from configuration.apply import AnotherPlan, Lacking, StillDiffers, apply_and_list
from configuration.document import ConfigDocument, ConfigurationError, Mark, Mistake
from configuration.export import export_recorded
from configuration.kinds import CHANGING, Act
from configuration.plan import Plan, plan
from ui.pages import AppRequest, first_names, leave, show

PAGE = "configuration/plan.html"
FILE = "pasted.yaml"  # Shown in events and *Managed by*: the page does not get the name of the chosen file.
MOST_CHARACTERS = 1_000_000  # The command accepts more; over REST, the request may have 1 MiB.
MOST_SHOWN = 1000  # A plan with more changes is not applied here, because nobody could review it.
MOST_NAMED = 200  # Objects in one sentence.
COLOURS = {Act.ADD: "active", Act.CHANGE: "pending", Act.REMOVE: "revoked", Act.DISABLE: "revoked"}  # States of badges.


@never_cache
@require_http_methods(["GET", "POST"])
@requires(*SEES_CONFIGURATION)
def plan_page(request: AppRequest) -> HttpResponse:
    """Show a form for the text of a file. The query parameter `text` fills the form. A POST shows the plan."""
    return _plan_response(request) if request.method == "POST" else _page(request, request.GET.get("text", ""))


@never_cache
@require_http_methods(["GET", "POST"])
@requires(*SEES_CONFIGURATION)
@requires(*CHANGING)
@ask_again
def apply_page(request: AppRequest) -> HttpResponse:
    """Apply the file if its plan still has the digest that the person saw. Otherwise show the new plan."""
    if request.method == "GET":  # The page was left open or reloaded after a refusal.
        return redirect("configuration:plan")
    try:
        terms = {"digest": request.POST.get("digest", ""), "prune": _prunes(request)}
        made = apply_and_list(_document(request), by=request.user, **terms)
    except ConfigurationError as error:
        return _page(request, _text(request), mistakes=error.mistakes)
    except (AnotherPlan, StillDiffers, Lacking) as refusal:
        return _plan_response(request, str(refusal))
    said = (f"Applied: {words.counted(made)}", made.unanswered)
    return leave(request, reverse("configuration:plan"), ". ".join(filter(None, said)))


@never_cache
@require_GET
@requires(*SEES_CONFIGURATION)
def export_file(request: AppRequest) -> HttpResponse:
    """Return a YAML file with all parts of the configuration that the person may see."""
    headers = {"Content-Disposition": 'attachment; filename="gateway.yaml"'}
    return HttpResponse(export_recorded(request.user), content_type="application/yaml; charset=utf-8", headers=headers)


def _plan_response(request: AppRequest, fault: str = "") -> HttpResponse:
    try:
        made = plan(_document(request), request.user, prune=_prunes(request))
    except ConfigurationError as error:
        return _page(request, _text(request), mistakes=error.mistakes)
    return _page(request, _text(request), fault=fault, made=made)


def _document(request: AppRequest) -> ConfigDocument:
    text = _text(request)
    if not text.strip():
        raise ConfigurationError([Mistake(Mark(FILE, 1, 1), "The file is empty. Choose a file or paste its text.")])
    if len(text) > MOST_CHARACTERS:
        mistake = f"This page takes at most {MOST_CHARACTERS:,} characters. For longer files, use the command “plan”."
        raise ConfigurationError([Mistake(Mark(FILE, 1, 1), mistake)])
    return document.read({FILE: text})


def _text(request: AppRequest) -> str:
    return request.POST.get("text", "").replace("\r\n", "\n")


def _prunes(request: AppRequest) -> bool:
    return "prune" in request.POST


def _page(
    request: AppRequest, text: str, *, fault: str = "", mistakes: Iterable[Mistake] = (), made: Plan | None = None
) -> HttpResponse:
    context = {"text": text, "fault": fault, "mistakes": mistakes, "prunes": _prunes(request), "most": MOST_CHARACTERS}
    context |= _plan_context(made) if made else {}
    return show(request, PAGE, context, status=422 if fault or mistakes else 200)


def _plan_context(made: Plan) -> dict[str, Any]:
    """Return the context of the page that shows a plan. Changes that end access (`cuts`) come first."""
    changes = sorted(made.changes, key=lambda change: not change.cuts)
    return {
        "plan": made,
        "counted": words.counted(made),
        "rows": [(one, COLOURS[one.act], words.field_lines(one, MOST_CHARACTERS)) for one in changes[:MOST_SHOWN]],
        "more": max(len(changes) - MOST_SHOWN, 0),
        "number": len(changes),
        "lacking": words.lacking_lines(made)[:MOST_NAMED],
        "claimed": first_names(made.claimed, most=MOST_NAMED),
        "absent": first_names(words.left_alone(made), most=MOST_NAMED),
    }
