"""Proves that the call log is as it was sealed, or names the rows that are not."""

import argparse
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from auditlog.checkpoints import sealing, verifying
from gatewayadmin.config import database
from gatewayadmin.config.database import Unusable
from gatewayadmin.management.options import moment


class Command(BaseCommand):
    help = "Compare the call log with its checkpoints, and name each row that was removed, changed or added."
    requires_system_checks = ()  # `make check` has judged the code; to do it again takes longer than most commands.

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--from", dest="since", type=moment, help="the first moment, such as 2026-11-20 (UTC)")
        parser.add_argument("--to", dest="until", type=moment, help="the moment after the last")
        parser.add_argument(
            "--public-key", dest="keys", action="append", type=Path, help="a PEM file; only checkpoints of it are taken"
        )
        parser.add_argument(
            "--received", type=Path, help="JSON lines that a sink got: their checkpoints must be the same as here"
        )
        parser.add_argument("--print-key", action="store_true", help="print the public key as PEM, and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            database.require()
        except Unusable as error:
            raise CommandError(str(error)) from error
        if options["print_key"]:
            with transaction.atomic():
                key = sealing.signing_key().public_key()
            self.stdout.write(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), ending="")
            return
        keys = [_public(path) for path in options["keys"]] if options["keys"] else None
        report = verifying.verify(keys, options["since"], options["until"], _received(options["received"]))
        for finding in report.findings:
            self.stdout.write(finding.sentence)
        self.stdout.write(
            f"{report.checkpoints} checkpoints, {report.rows} calls as they were sealed, {report.uncovered} that no "
            f"checkpoint has yet, {report.dropped} whose partitions were dropped."
        )
        if keys is None:
            self.stdout.write("The key was taken from the database itself. Give the one you kept: --public-key FILE.")
        if report.findings:
            raise CommandError(f"The log is not as it was sealed: {len(report.findings)} findings.")


def _received(path: Path | None) -> list[tuple[int, str]]:
    """Number and body of each checkpoint among these lines; of those that came twice, both."""
    if path is None:
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return [(int(line["number"]), str(line["body"])) for line in lines if line.get("log") == "checkpoint"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CommandError(f"{path} cannot be read as JSON lines: {error}.") from None


def _public(path: Path) -> bytes:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} holds no public key in PEM: {error}.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise CommandError(f"{path} holds a key of another kind than Ed25519.")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)
