"""The page *Prove the log*: the period that checkpoints cover, the public key, and downloads to verify offline."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django import forms
from django.conf import settings
from django.http import HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from auditlog.actions import Action
from auditlog.checkpoints import sealing, verify_export
from auditlog.checkpoints.signed_export import NothingSealed, SignedExport
from auditlog.models import Checkpoint, Event
from capabilities import Capability, requires
from ui.export import TooManyExports, file_response, too_many_response
from ui.pages import AppRequest, show

READS = {"call": Capability.LOGS_READ, "event": Capability.AUDIT_READ}
VERIFIER = "verify_export.py"
KEY_FILE = "checkpoint-key.pem"


class ProofForm(forms.Form):
    """Form for the first and the last day of a signed export, in UTC."""

    since = forms.DateField(label="From", widget=forms.DateInput(attrs={"type": "date"}))
    until = forms.DateField(label="To", widget=forms.DateInput(attrs={"type": "date"}))

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if values.get("since") and values.get("until"):
            if values["since"] > values["until"]:
                raise forms.ValidationError("The first day must not be after the last one.")
            if values["until"] == date.max:
                raise forms.ValidationError("Choose an earlier last day.")
        return values

    @property
    def period(self) -> tuple[datetime, datetime]:
        """Return a pair: the start of the first day, and the end of the last day."""
        since, until = (datetime.combine(self.cleaned_data[name], time(), UTC) for name in ("since", "until"))
        return since, until + timedelta(days=1)


@require_GET
@requires(*READS.values())
def proof(request: AppRequest) -> HttpResponse:
    today = timezone.now().date()
    form = ProofForm(request.GET or None, initial={"since": today - timedelta(days=7), "until": today})
    return show(request, "auditlog/proof.html", _context(request, form))


def _context(request: AppRequest, form: ProofForm) -> dict[str, Any]:
    context: dict[str, Any] = {"form": form, "tab": "proof", "reads": _logs(request)}
    first, newest = (Checkpoint.objects.defer("leaves").order_by(by).first() for by in ("number", "-number"))
    if first is None or newest is None:
        return context
    body = orjson.loads(newest.body)
    keys = {bytes(one.public_key) for one in (first, newest)} | {sealing.public_bytes(sealing.signing_key())}
    return context | {
        "newest": newest,
        "sealed_since": datetime.fromisoformat(orjson.loads(first.body)["sealed_at"]),
        "sealed_to": datetime.fromisoformat(body["sealed_at"]),
        "kept_from": datetime.fromisoformat(body["kept_from"]) if "kept_from" in body else None,
        "key": _pem(),
        "fingerprints": sorted(map(verify_export.fingerprint, keys)),
        "is_own_key": bool(settings.CHECKPOINT_KEY),
        "verifier": VERIFIER,
        "key_file": KEY_FILE,
    }


@require_GET
@requires(*READS.values())
def export_proof(request: AppRequest) -> HttpResponse:
    """Download the rows and checkpoints, and record the export. With `only=checkpoints`, leave out the rows."""
    form, only = ProofForm(request.GET), request.GET.get("only") == "checkpoints"
    if not form.is_valid():
        return show(request, "auditlog/proof.html", _context(request, form), status=422)
    try:
        pieces = SignedExport(*form.period, [] if only else _logs(request), by=request.user)
    except TooManyExports as refused:
        return too_many_response(refused)
    except NothingSealed as reason:
        form.add_error(None, str(reason))
        return show(request, "auditlog/proof.html", _context(request, form), status=422)
    changes: dict[str, list[Any]] = {name: [None, str(form.cleaned_data[name])] for name in ("since", "until")}
    changes |= {"logs": [None, [] if only else _logs(request)]}
    Event.objects.record(Action.PROOF_EXPORTED, request.user, by=request.user, changes=changes)
    name = "checkpoints" if only else "signed-log"
    return file_response(request, name, "jsonl", pieces)  # type: ignore[return-value]  # A stream is a response.


@require_GET
@requires(*READS.values())
def verifier(request: AppRequest) -> HttpResponse:
    """Download the program that verifies signed exports."""
    return _file(VERIFIER, Path(verify_export.__file__).read_text(encoding="utf-8"), "text/x-python; charset=utf-8")


@require_GET
@requires(*READS.values())
def public_key(request: AppRequest) -> HttpResponse:
    """Download the public key as PEM."""
    return _file(KEY_FILE, _pem(), "application/x-pem-file")


def _logs(request: AppRequest) -> list[str]:
    return [log for log, capability in READS.items() if request.user.has_perm(capability)]


def _pem() -> str:
    key = sealing.signing_key().public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _file(name: str, text: str, kind: str) -> HttpResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return HttpResponse(text, content_type=kind, headers=headers)
