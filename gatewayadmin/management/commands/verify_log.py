"""Verifies that calls and admin events match their checkpoints, and reports the rows and periods that do not."""

import argparse
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from django.core.management.base import CommandError
from django.db import transaction
from django.template.defaultfilters import pluralize

from auditlog.actions import Action
from auditlog.checkpoints import sealing, verifying
from auditlog.checkpoints.received import Received
from auditlog.checkpoints.sealing import END
from auditlog.checkpoints.verify_export import BEGINNING, NOUNS, LogPeriod, in_words, late_lines
from auditlog.checkpoints.verifying import Report
from auditlog.models import Event
from auditlog.partitions import DAY, midnight
from gatewayadmin.management.base import WorkspaceCommand, moment
from sinks import archive
from sinks.archive import UnreadableArchive


class Command(WorkspaceCommand):
    help = "Compare calls and admin events with their checkpoints, and report removed, changed and added rows."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--from", dest="since", type=moment, help="start of the period, such as 2026-11-20 (UTC)")
        parser.add_argument("--to", dest="until", type=moment, help="end of the period")
        parser.add_argument(
            "--public-key",
            dest="keys",
            action="append",
            type=Path,
            help="a PEM file; only checkpoints signed with it are accepted",
        )
        parser.add_argument(
            "--received",
            type=Path,
            help="a file of JSON lines that a sink received; checkpoints and rows in it must match the database",
        )
        parser.add_argument(
            "--archive", action="store_true", help="also compare archived calls with the admin events that name them"
        )
        parser.add_argument("--print-key", action="store_true", help="print the public key as PEM, and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["print_key"]:
            with transaction.atomic():
                key = sealing.signing_key().public_key()
            self.stdout.write(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), ending="")
            return
        keys = [_public(path) for path in options["keys"]] if options["keys"] else None
        received = _received(options["received"], options["until"]) if options["received"] else None
        if options["archive"] and not archive.archive_enabled():
            raise CommandError("Set GATEWAY_ARCHIVE to the folder or bucket of the archive.", returncode=2)
        report = verifying.verify(keys, options["since"], options["until"], received)
        asked = LogPeriod(options["since"] or BEGINNING, options["until"] or END)
        archived, unread = _compare_archive(report, asked) if options["archive"] else ([], "")
        for finding in report.findings:
            self.stdout.write(finding.sentence)
        for line in (*_summary(report, received), *archived):
            self.stdout.write(line)
        if keys is None:
            self.stdout.write(
                "The key was taken from the database itself. To detect a log that was signed again with another key, "
                "give your own copy of the public key: --public-key FILE."
            )
        if report.findings:
            number = len(report.findings)
            raise CommandError(f"The log does not match its checkpoints: {number} finding{pluralize(number)}. {unread}")
        if unread:
            raise CommandError(unread, returncode=2)


def _compare_archive(report: Report, asked: LogPeriod) -> tuple[list[str], str]:
    """Add a finding for each day in the period whose archived calls differ from the admin events.

    Returns the lines to print, and why the archive cannot be read; "" if it can.
    """
    named, days = _archived(report)
    if not days:
        return ["The archive is not compared: no admin event names archived calls."], ""
    first = min(days) if asked.since == BEGINNING else asked.since.date()
    last = min(max(days), (asked.until - timedelta(microseconds=1)).date())
    matching = unknown = 0
    try:
        for day, difference in archive.verify_archive(named, _days(first, last)):
            if difference and day < min(days):
                unknown += 1
            elif difference:
                report.add("archive", difference, LogPeriod(midnight(day), midnight(day + DAY)))
            else:
                matching += 1
    except UnreadableArchive as reason:
        return [], str(reason)
    lines = [f"The archive of {matching} day{pluralize(matching)} from {first} to {last} matches."]
    if unknown:
        lines.append(f"Not compared: {unknown} archived day{pluralize(unknown)} before {min(days)}.")
    return lines, ""


def _archived(report: Report) -> tuple[dict[str, str], set[date]]:
    """Return the SHA-256 of each manifest that admin events name, and the days that they name."""
    named, days = dict[str, str](), set[date]()
    for event in Event.objects.filter(action=Action.CALLS_ARCHIVED).order_by("pk"):
        try:
            day, manifest, digest = (str(event.changes[name]) for name in ("day", "manifest", "sha256"))
            days.add(date.fromisoformat(day))
        except (KeyError, TypeError, ValueError):
            said = f"Admin event {event.uid} about archived calls is invalid."
            report.add("archive", said, LogPeriod(event.created_at, event.created_at))
        else:
            named.setdefault(manifest, digest)
    return named, days


def _days(first: date, last: date) -> Iterator[date]:
    for number in range((last - first).days + 1):
        yield first + number * DAY


def _summary(report: Report, received: Received | None) -> Iterator[str]:
    if not report.findings:
        yield "OK: everything that was compared matches its checkpoints."
    yield (
        f"{report.checkpoints} checkpoints, {report.calls} calls and {report.events} admin events match, "
        f"{report.uncovered} are in no checkpoint yet, {report.dropped} were dropped by retention."
    )
    if report.sealed_to:
        yield f"Sealed up to {in_words(report.sealed_to)}."
    if received:
        first, newest = min(received.checkpoints.values()), max(received.checkpoints.values())
        yield (
            f"The received checkpoints are from {in_words(first)} to {in_words(newest)}: "
            "only the signatures prove that earlier and later rows are unchanged."
        )
    for log, span in report.unsealed:
        yield f"In no checkpoint: {NOUNS[log].lower()}s from {span.in_words}. They are not verified."
    yield from late_lines(report.late)
    for span in report.unproved():
        yield f"Unproved: from {span.in_words}."


def _received(path: Path, until: datetime | None) -> Received:
    """Read a sink's file. Raises CommandError with exit code 2 if the file is unreadable or has no checkpoint."""
    try:
        with path.open() as lines:
            received = Received.read(lines, until)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CommandError(f"{path} cannot be read as JSON lines of a sink: {error}.", returncode=2) from None
    if not received.checkpoints:
        before = f" from before {until.isoformat()}" if until else ""
        raise CommandError(f"{path} has no checkpoint{before}, so it proves nothing.", returncode=2)
    return received


def _public(path: Path) -> bytes:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} has no public key in PEM: {error}.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise CommandError(f"{path} has a key that is not Ed25519.")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)
