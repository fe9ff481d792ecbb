"""The newest release can serve during and after later migrations. A long log does not prolong a migration's locks.

During the next upgrade (docs/how-to/upgrade.md), the newest release still serves on the new tables. Everything that it
inserts and reads must exist. A migration may remove a column that this release does not need, if CONTRACTED lists it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from django.apps import apps
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
from bench.upgrade import MIGRATIONS, migrations_of, newest_release
from tests.house.test_files import tracked
from tests.workspace import ROOT

# Operations that remove something, or cannot be judged here: "app.0001_name", and why each is safe.
CONTRACTED: dict[str, str] = {}
OF_THE_LOG = "call"

type Step = tuple[Operation, ProjectState, ProjectState]


def of_apps(paths: Iterable[str]) -> set[str]:
    """Return migrations as `app.0001_name`, given their paths in the repository."""
    labels = {config.path: config.label for config in apps.get_app_configs()}
    files = [ROOT / path for path in paths]
    return {f"{labels[str(file.parent.parent)]}.{file.stem}" for file in files if str(file.parent.parent) in labels}


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
    """Return why this step breaks the previous release, which is still serving; empty if it does not."""
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
    """Return True if every value that the previous release writes still fits into the column."""
    return bool(old.db_parameters(connection) == new.db_parameters(connection) and (new.null or not old.null))


def test_the_newest_release_can_serve_what_the_migrations_since_make() -> None:
    """Before the first release, there is nothing to compare."""
    loader = MigrationLoader(None, replace_migrations=False)
    release, made_here, wrong = newest_release(), set[tuple[str, str]](), {}
    here = of_apps(str(path.relative_to(ROOT)) for path in tracked(MIGRATIONS))
    since = here - of_apps(migrations_of(release)) if release else set[str]()
    plan = dict.fromkeys(key for leaf in loader.graph.leaf_nodes() for key in loader.graph.forwards_plan(leaf))
    for key in (key for key in plan if ".".join(key) in since):
        state = loader.project_state(key, at_end=False)
        for step in steps(key[0], state, loader.graph.nodes[key].operations):
            if (said := complaint(key[0], step, made_here)) and ".".join(key) not in CONTRACTED:
                wrong[f"{'.'.join(key)}: {step[0].describe()}"] = said

    assert wrong == {}
    assert {"auditlog.0001_initial", "upstream_oauth.0001_initial"} <= here
    assert since >= {*CONTRACTED}


def test_migrations_that_break_the_previous_release_are_found() -> None:
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
