"""The archive of old calls: only completely archived calls are dropped, and every archived call can be found."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from datetime import timedelta
from datetime import timezone as tzinfo
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from accounts.models import WorkspaceSettings
from auditlog.actions import Action
from auditlog.checkpoints import sealing
from auditlog.checkpoints.sealing import leaf_of, unpacked
from auditlog.checkpoints.verifying import verify
from auditlog.models import Call, Checkpoint, Event
from capabilities import Capability
from gatewayadmin.serving import housekeeping
from sinks import archive, parquet
from sinks.models import ArchivedPartition, Sink
from tests import cluster, make
from tests.calls import call
from tests.docs.pages import ROOT
from tests.house.doors import browser as browser_of
from tests.house.doors import session_of
from tests.running.starts import environment
from tests.running.test_refusals import KEYS as KEYS_OF_TESTS
from tests.running.test_refusals import NOWHERE
from tests.sinks.conftest import KEYS, Bucket

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)
OLD = 40  # Days, past the retention of 30.


@pytest.fixture
def folder(tmp_path: Path, settings: LazySettings) -> Path:
    settings.ARCHIVE = str(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _retention() -> None:
    workspace = WorkspaceSettings.load()
    WorkspaceSettings.objects.filter(pk=workspace.pk).update(log_retention_days=30)
    Call.partitions.drop_before((timezone.now() - 30 * DAY).date())  # Drop partitions left empty by other modules.


def old(days: int = OLD, **fields: Any) -> Call:
    return call(timezone.now() - days * DAY, **fields)


def chores() -> dict[str, Any]:
    """Run the chores for old calls; return their results by name, and the last error as `failed`."""
    names = ["partitions_archived", "partitions_not_archived", "rollups_dropped", "calls_dropped_unsent"]
    names += ["partitions_dropped"]
    done: dict[str, Any] = {}
    for name in names:
        try:
            done[name] = housekeeping.CHORES[name](timezone.now())
        except archive.NotArchived as reason:
            done["failed"] = str(reason)
    return done


def search(*words: str) -> list[dict[str, Any]]:
    out = io.StringIO()
    call_command("search_archive", *words, stdout=out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def searched_from(days: int) -> str:
    return f"{(timezone.now() - days * DAY).date()}"


@pytest.mark.full
def test_old_calls_are_archived_then_dropped_and_found_again(bucket: Bucket, settings: LazySettings) -> None:
    settings.ARCHIVE = ""
    old(OLD + 2)
    assert chores()["partitions_dropped"] == 1, "without an archive, old calls are dropped"
    assert not ArchivedPartition.objects.exists()
    with pytest.raises(CommandError, match="GATEWAY_ARCHIVE"):
        search("--from", "2026-11-20")
    settings.ARCHIVE, settings.ARCHIVE_KEYS = bucket.url, KEYS
    sealing.keep_up()
    payload = {"deep": {"number": 10**20, "text": "ä\n"}}
    made = [old(feature_name=name, request_payload=payload, client_ip="2001:db8::1") for name in ("a", "b", "a")]
    made.append(old(OLD + 1, feature_name="a", user_email="ana@example.com"))
    kept = call()

    done = chores()

    assert (done["partitions_archived"], done["partitions_dropped"]) == (2, 2)
    assert list(Call.objects.values_list("uid", flat=True)) == [kept.uid]
    assert verify().findings == []
    assert any(line.startswith("The archive of 2 days ") for line in verified(matches=True))
    found = search("--from", searched_from(OLD + 1), "--to", searched_from(OLD - 1))
    assert {row["uid"] for row in found} == {str(one.uid) for one in made}
    [row] = [row for row in found if row["uid"] == str(made[0].uid)]
    assert json.loads(row["request_payload"]) == payload
    assert (row["client_ip"], row["duration_ms"], row["http_status"]) == ("2001:db8::1/128", 1.5, 200)
    by_tool = search("--from", searched_from(OLD), "--tool", "b")
    assert [row["uid"] for row in by_tool] == [str(made[1].uid)]
    assert len(search("--from", searched_from(OLD + 1), "--user", "ana@example.com")) == 1
    assert search("--from", searched_from(3), "--to", searched_from(-1)) == []
    for hours in (14, -12):  # The archive's days are in UTC. The times of a search can have an offset.
        zone = tzinfo(timedelta(hours=hours))
        begin, end = ((made[0].created_at + n * DAY / 24).astimezone(zone).isoformat() for n in (-1, 1))
        assert {row["uid"] for row in search("--from", begin, "--to", end)} == {str(one.uid) for one in made[:3]}
    told = ArchivedPartition.objects.get(rows=3)
    assert told.archived_at
    assert len(told.digest) == 64


def test_rows_read_from_the_archive_have_the_digests_that_were_sealed(folder: Path) -> None:
    """Checkpoints can therefore prove archived rows, too."""
    sealing.keep_up()
    made = [call(request_payload={"b": n, "a": [1.5, None]}, client_ip="10.0.0.1") for n in range(4)]
    sealing.keep_up()
    span = next(span for span in Call.partitions.spans() if span.start == made[0].created_at.date())
    [name] = [name for name, one in Call.partitions.expired(span.end) if one == span]
    archive.archive(name, span)

    with archive.open_archive() as store:
        [manifest] = archive._manifests(store, span.start)
        leaves = {leaf_of(row | {"uid": UUID(row["uid"])}) for row in archive.archived_rows(store, manifest)}
    sealed = {leaf for one in Checkpoint.objects.exclude(leaves=b"") for leaf in unpacked(bytes(one.leaves or b""))}
    assert leaves == sealed
    assert len(leaves) == 4


def verified(*words: str, matches: bool) -> list[str]:
    """Run `verify_log --archive`, assert whether everything matches, and return the printed lines."""
    out = io.StringIO()
    with nullcontext() if matches else pytest.raises(CommandError, match="does not match"):
        call_command("verify_log", "--archive", *words, stdout=out)
    return out.getvalue().splitlines()


@pytest.mark.full
def test_forged_archive_differs_from_the_sealed_events(folder: Path, settings: LazySettings) -> None:
    sealing.keep_up()
    settings.ARCHIVE = ""
    with pytest.raises(CommandError, match="GATEWAY_ARCHIVE"):
        call_command("verify_log", "--archive")
    settings.ARCHIVE = str(folder)
    assert "The archive is not compared: no admin event names archived calls." in verified(matches=True)
    for days in (OLD, OLD, OLD + 1):
        old(days, feature_name="send_money")
    chores()
    sealing.keep_up()
    day = (timezone.now() - OLD * DAY).date()
    before = day - DAY
    assert f"The archive of 2 days from {before} to {day} matches." in verified(matches=True)
    assert f"The archive of 1 day from {day} to {day} matches." in verified("--from", str(day), matches=True)
    assert f"The archive of 1 day from {before} to {before} matches." in verified("--to", str(day), matches=True)
    place = folder / "calls" / f"{day:%Y/%m/%d}"
    [file], manifest = place.glob("*.parquet"), place / "manifest-1.json"

    def found() -> list[str]:
        lines = verified(matches=False)
        assert f"The archive of 1 day from {before} to {day} matches." in lines
        assert any(line.startswith(f"Unproved: from {day}") for line in lines)
        return [line.removeprefix(f"calls/{day:%Y/%m/%d}/") for line in lines]

    # A forger replaces the files of a day by ones that match each other, or adds a manifest.
    true, told = file.read_bytes(), json.loads(manifest.read_bytes())
    forged = parquet.Writer(parquet.schema_of(sealing.NEWEST)).close()
    part = {"name": told["parts"][0]["name"], "rows": 0, "sha256": sha256(forged).hexdigest()}
    other = json.dumps(told | {"rows": 0, "digest": sha256().hexdigest(), "parts": [part]})
    kept = manifest.read_bytes()
    file.write_bytes(forged)
    assert f"{file.name} was changed in the archive." in found()
    manifest.write_text(other)
    assert search("--from", str(day), "--tool", "send_money") == []
    assert "manifest-1.json was changed in the archive." in found()
    file.write_bytes(true)
    manifest.unlink()
    assert "manifest-1.json is missing in the archive." in found()
    manifest.write_bytes(kept)
    (place / "manifest-2.json").write_text(other)
    assert "manifest-2.json was added to the archive: no admin event names it." in found()
    (place / "manifest-2.json").unlink()
    file.unlink()
    assert f"{file.name} is missing in the archive." in found()


@pytest.mark.full
def test_archived_days_without_an_event_are_counted_and_an_unreadable_archive_is_no_finding(folder: Path) -> None:
    sealing.keep_up()
    old()
    chores()
    sealing.keep_up()
    day = (timezone.now() - OLD * DAY).date()
    kept = (folder / "calls" / f"{day:%Y/%m/%d}" / "manifest-1.json").read_bytes()
    older = folder / "calls" / f"{day - 5 * DAY:%Y/%m/%d}"
    older.mkdir(parents=True)
    (older / "manifest-1.json").write_bytes(kept)
    lines = verified("--from", str(day - 9 * DAY), matches=True)
    assert f"Not compared: 1 archived day before {day}." in lines
    (folder / "calls").rename(folder / "elsewhere")
    (folder / "calls").write_text("a file where a folder has to be")
    with pytest.raises(CommandError, match="cannot be read") as unread:
        call_command("verify_log", "--archive", stdout=(out := io.StringIO()))
    assert unread.value.returncode == 2
    assert out.getvalue().startswith("OK: ")
    made_up = Event.objects.record(Action.CALLS_ARCHIVED, WorkspaceSettings.load(), by=None, changes={"day": "none"})
    assert f"Admin event {made_up.uid} about archived calls is invalid." in verified(matches=False)


@pytest.mark.full
def test_partition_that_cannot_be_archived_is_kept_with_all_that_is_said_of_it(folder: Path) -> None:
    sealing.keep_up()
    Sink.objects.add(name="Paused", kind="stdout", by=None, from_beginning=True)
    made = old()
    (folder / "calls").write_text("a file where a folder has to be")

    done = chores()

    assert "cannot be written" in str(done["failed"])
    assert (done["partitions_not_archived"], done["partitions_dropped"], done["calls_dropped_unsent"]) == (1, 0, 0)
    assert archive.WAITING._value.get() == 1
    assert Call.objects.get().uid == made.uid
    boss = browser_of(session_of(make.user(*Capability)))
    assert "could not be archived" in boss.get("/").content.decode()
    other = browser_of(session_of(make.user(*(set(Capability) - {Capability.SINKS_MANAGE}))))
    assert "could not be archived" not in other.get("/").content.decode()
    WorkspaceSettings.objects.update(log_retention_days=90)
    assert chores()["partitions_not_archived"] == 0, "it is not old any more"
    WorkspaceSettings.objects.update(log_retention_days=30)

    (folder / "calls").unlink()
    done = chores()
    assert (done["partitions_archived"], done["partitions_dropped"], done["partitions_not_archived"]) == (1, 1, 0)
    assert "could not be archived" not in boss.get("/").content.decode()


def test_rows_that_differ_when_read_back_are_not_archived(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = old(duration_ms=1.5)
    plain = archive._plain
    monkeypatch.setattr(archive, "_plain", lambda row: plain(row) | {"duration_ms": 2.5})

    done = chores()

    assert "has other rows when read back" in str(done["failed"])
    assert Call.objects.get().uid == made.uid
    monkeypatch.undo()
    assert chores()["partitions_dropped"] == 1


def test_partition_that_got_a_row_since_is_archived_again(folder: Path) -> None:
    first = old()
    [(name, span)] = Call.partitions.expired((timezone.now() - 30 * DAY).date())
    assert archive.archive(name, span)
    assert not archive.archive(name, span)
    late = old()

    assert archive.archive(name, span)

    found = search("--from", searched_from(OLD))
    assert sorted(row["uid"] for row in found) == sorted([str(first.uid), str(late.uid)])
    later = old()
    with pytest.raises(archive.NotArchived, match="not archived yet"):
        housekeeping.CHORES["partitions_dropped"](timezone.now())
    assert chores()["partitions_dropped"] == 1
    assert str(later.uid) in {row["uid"] for row in search("--from", searched_from(OLD))}


@pytest.mark.full
def test_archiving_that_was_cut_short_is_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash left files without a manifest; the next run reuses them or leaves them unreferenced."""
    made = {str(old().uid) for _ in range(6)}
    [(name, span)] = Call.partitions.expired((timezone.now() - 30 * DAY).date())
    monkeypatch.setattr(archive.Manifest, "written", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        archive.archive(name, span)
    monkeypatch.undo()
    connection.close()

    archive.archive(name, span)

    assert {row["uid"] for row in search("--from", searched_from(OLD))} == made
    assert len(list(folder.rglob("*.parquet"))) == 1


@pytest.mark.full
def test_large_day_makes_several_files_and_a_search_says_when_it_finds_more_than_it_prints(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "PART_BYTES", 4000)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 3)
    made = {str(old().uid) for _ in range(20)}
    chores()
    out, err = io.StringIO(), io.StringIO()

    call_command("search_archive", "--from", searched_from(OLD), "--most", "2", stdout=out, stderr=err)

    assert len(list(folder.rglob("*.parquet"))) > 1
    assert {row["uid"] for row in search("--from", searched_from(OLD))} == made
    assert len(out.getvalue().splitlines()) == 2
    assert "more than 2" in err.getvalue()
    call_command("search_archive", "--from", searched_from(OLD + 7), "--to", searched_from(OLD), stdout=out, stderr=err)
    assert "The archive lacks 7 of the requested days: " in err.getvalue()


@pytest.mark.full
def test_archive_that_was_changed_is_not_read(folder: Path) -> None:
    old()
    chores()
    [file] = folder.rglob("*.parquet")

    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CommandError, match="changed"):
        search("--from", searched_from(OLD))
    file.unlink()
    with pytest.raises(CommandError, match="missing"):
        search("--from", searched_from(OLD))


@pytest.mark.full
def test_commands_as_printed(tmp_path: Path) -> None:
    """Run the commands that docs/how-to/send-the-logs.md prints. `search_archive` runs without a database."""
    moment = timezone.now() - OLD * DAY
    made = [str(old(feature_name=name).uid) for name in ("create_issue", "other")]
    page = (ROOT / "docs" / "how-to" / "send-the-logs.md").read_text()
    switch_on, find = re.findall(r"```bash\n(export GATEWAY_ARCHIVE.*?|[^`\n]* search_archive .*?)```", page, re.DOTALL)
    place = "/srv/gateway-archive"
    assert place in switch_on

    def run(script: str, **more: str) -> str:
        told = script.replace(place, str(tmp_path / "archive")).replace(".venv/bin/python", sys.executable)
        home = environment(tmp_path / "home", **KEYS_OF_TESTS, **more)
        done = subprocess.run(["bash", "-ec", told], cwd=ROOT, env=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    address = urlsplit(os.environ[cluster.ADDRESS])._replace(path=f"/{connection.settings_dict['NAME']}")
    said = run(switch_on, DATABASE_URL=address.geturl())
    assert "partitions_archived 1," in said
    days = find.replace("2026-08-20", str(moment.date())).replace("2026-08-27", str((moment + 7 * DAY).date()))
    found = run(days, GATEWAY_ARCHIVE=str(tmp_path / "archive"), DATABASE_URL=NOWHERE)
    assert [json.loads(line)["uid"] for line in found.splitlines()] == made[:1]
