"""Migrations since the release before leave its code able to serve, and hold no lock for as long as the log is large.

For a while the release before serves the new tables (docs/how-to/upgrade.md): what it inserts and reads has to be
there. What it no longer needs goes one release later, and is then named in CONTRACTED.
"""

import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

from django.db import connection, models
from django.db.migrations import (
    AddField,
    AddIndex,
    AlterField,
    AlterModelOptions,
    CreateModel,
    DeleteModel,
    RemoveField,
    RunSQL,
    SeparateDatabaseAndState,
)
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from auditlog.indexes import AddIndexInUse, DeclareIndex
from bench.upgrade import PREVIOUS
from tests.workspace import ROOT

# Operations that take something away, or do something that cannot be judged here: "app.0001_name", and why it is safe.
CONTRACTED: dict[str, str] = {
    "proxy.0014_leave_out_what_follows_from_a_definition": "it leaves out a column that is new",
    "gateways.0009_say_what_a_tool_does": "its trigger writes a column that is new",
    "auditlog.0017_leaner_rollups": "the release before finds nothing counted: it cannot count, and reads bounded rows",
    "auditlog.0018_weeks_for_windows": "the release before counts into another table, and has no windows",
    "sinks.0004_no_kafka": "the release before shows no sink that is gone",
    "gateways.0010_list_tools_by_what_they_do": "the release before does not have the index that goes",
}
OF_THE_LOG = "call"

type Step = tuple[Operation, ProjectState, ProjectState]


def known_before() -> set[str]:
    """The migrations of the release before."""
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", PREVIOUS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, f"the release before, commit {PREVIOUS}, is not in this clone: {listed.stderr}"
    paths = [path.split("/") for path in listed.stdout.splitlines() if "/migrations/0" in path]
    return {f"{path[-3]}.{path[-1].removesuffix('.py')}" for path in paths}


def steps(app: str, state: ProjectState, operations: Iterable[Operation]) -> Iterator[Step]:
    for operation in flat(operations):
        after = state.clone()
        operation.state_forwards(app, after)
        yield operation, state, after
        state = after


def flat(operations: Iterable[Operation]) -> Iterator[Operation]:
    for operation in operations:
        if isinstance(operation, SeparateDatabaseAndState):
            yield from flat(operation.database_operations)
        else:
            yield operation


def complaint(app: str, step: Step, made_here: set[tuple[str, str]]) -> str:
    """What is wrong with this step while the release before serves; "" for nothing."""
    operation = step[0]
    model = getattr(operation, "model_name", getattr(operation, "name", "")).lower()
    if isinstance(operation, CreateModel):
        made_here.add((app, model))
    if (app, model) in made_here or isinstance(operation, AlterModelOptions):
        return ""
    match operation:
        case AddField(field=field) if not (field.null or field.has_db_default() or field.many_to_many):
            said = "a new column needs a default of the database, or NULL: see db_default"
        case AlterField(name=name) if not is_as_wide(*(one.models[app, model].get_field(name) for one in step[1:])):
            said = "a column is no longer what the release before writes and reads"
        case AddIndex() if model == OF_THE_LOG and not isinstance(operation, DeclareIndex):
            said = "an index of the log is declared with DeclareIndex, or calls wait until the log has been read"
        case AddIndex() if model != OF_THE_LOG and not isinstance(operation, AddIndexInUse):
            said = "an index of a table in use is made with AddIndexInUse, or who writes waits until it has been read"
        case AddField() | AlterField() | AddIndex():
            said = ""
        case _:
            said = "it takes something away, or nobody but you can tell what it does to the release before"
    return said


def is_as_wide(old: Any, new: Any) -> bool:
    """Whether whatever the release before writes into the column can still be written."""
    return bool(old.db_parameters(connection) == new.db_parameters(connection) and (new.null or not old.null))


def test_the_release_before_can_serve_what_the_migrations_since_make() -> None:
    loader = MigrationLoader(None, replace_migrations=False)
    before, made_here, wrong = known_before(), set[tuple[str, str]](), {}
    ours = {path.parent.parent.name for path in ROOT.glob("*/migrations/__init__.py")}
    plan = [key for leaf in loader.graph.leaf_nodes() for key in loader.graph.forwards_plan(leaf)]
    since = [key for key in dict.fromkeys(plan) if key[0] in ours and ".".join(key) not in before]
    for key in since:
        state = loader.project_state(key, at_end=False)
        for step in steps(key[0], state, loader.graph.nodes[key].operations):
            if (said := complaint(key[0], step, made_here)) and ".".join(key) not in CONTRACTED:
                wrong[f"{'.'.join(key)}: {step[0].describe()}"] = said

    assert wrong == {}
    assert before
    assert {".".join(key) for key in since} >= {*CONTRACTED}


def test_what_the_release_before_cannot_live_with_is_seen() -> None:
    state = ProjectState()
    made = CreateModel(
        "Call", [("id", models.BigAutoField(primary_key=True)), ("name", models.CharField(max_length=9))]
    )
    made.state_forwards("auditlog", state)
    index = models.Index(fields=["name"], name="call_by_name")
    narrower = models.CharField(max_length=8)

    assert {said(state, operation) for operation in (AddIndex("Call", index), AddField("Call", "more", narrower))} == {
        "an index of the log is declared with DeclareIndex, or calls wait until the log has been read",
        "a new column needs a default of the database, or NULL: see db_default",
    }
    assert all(said(state, one) for one in (AlterField("Call", "name", narrower), RemoveField("Call", "name")))
    assert all(said(state, one) for one in (RunSQL("SELECT 1"), DeleteModel("Call")))
    user = CreateModel(
        "Other", [("id", models.BigAutoField(primary_key=True)), ("name", models.CharField(max_length=9))]
    )
    user.state_forwards("auditlog", state)
    assert said(state, AddIndex("Other", index)).startswith("an index of a table in use is made with AddIndexInUse")
    assert said(state, AddIndexInUse("Other", index)) == ""
    fine = (DeclareIndex("Call", index), AddField("Call", "more", models.CharField(max_length=8, db_default="")))
    assert [said(state, one) for one in fine] == ["", ""]


def said(state: ProjectState, operation: Operation) -> str:
    (step,) = steps("auditlog", state, [operation])
    return complaint("auditlog", step, set())
