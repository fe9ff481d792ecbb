"""What the tools there are do, and the index of their list with it."""

from typing import Any

from django.contrib.postgres.operations import RemoveIndexConcurrently
from django.db import migrations, models, transaction
from django.db.models import Q

from auditlog.indexes import AddIndexInUse

# The assignment is locked first, as by who learns a list. The trigger says which effect each has; rows that stay
# unknown are not written, in none of the tries that a long transaction may cost.
OF_ASSIGNMENT = """
WITH a AS MATERIALIZED (SELECT id FROM gateways_assignment WHERE id = %s FOR NO KEY UPDATE)
UPDATE gateways_feature f SET effect = 'unknown' FROM a
WHERE f.assignment_id = a.id AND f.effect = 'unknown'
    AND (f.annotations->'readOnlyHint' IN ('true', 'false') OR f.annotations->'destructiveHint' = 'true')
"""
ROWS = 5_000  # After so many the room of their old versions is used again: the table does not grow to twice its size.


def work_out(apps: Any, schema_editor: Any) -> None:
    """Work out the effect of the features there are, one assignment at a time; who was killed goes on."""
    changed = 0
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT id FROM gateways_assignment ORDER BY id")
        for assignment in cursor.fetchall():
            with transaction.atomic(using=schema_editor.connection.alias):
                cursor.execute(OF_ASSIGNMENT, assignment)
                changed += cursor.rowcount
            if changed >= ROWS:
                cursor.execute("VACUUM (ANALYZE, SKIP_LOCKED, TRUNCATE false) gateways_feature")
                changed = 0


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("gateways", "0009_say_what_a_tool_does")]

    operations = [
        migrations.RunPython(work_out, migrations.RunPython.noop),
        AddIndexInUse(
            "feature",
            models.Index(
                fields=["assignment", "name"],
                include=["enabled", "state", "exposed_name", "effect"],
                name="listed_tool_of_assignment",
                condition=Q(kind="tool", missing_since=None),
            ),
        ),
        RemoveIndexConcurrently("feature", "tool_of_assignment"),  # Where it was made before it was released.
    ]
