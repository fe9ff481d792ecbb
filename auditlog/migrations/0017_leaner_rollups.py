"""Fewer combinations are counted, in a table with one index; all of the log is counted anew.

A process of the release before must not count into it: it finds its own state empty, and cannot begin.
"""

from django.db import migrations, models

PARTIAL = ("feature_name", "gateway", "host", "server", "user")


class Migration(migrations.Migration):

    dependencies = [("auditlog", "0016_last_call_of_rollups")]

    operations = [
        migrations.RunSQL(
            (
                "TRUNCATE auditlog_rollup, auditlog_rollupwindow, auditlog_rollupstate",
                "ALTER TABLE auditlog_rollupstate ADD CONSTRAINT rollups_are_counted_elsewhere CHECK (false)",
                # Rows are found by what they count; nothing names their ids.
                "ALTER TABLE auditlog_rollup DROP CONSTRAINT auditlog_rollup_pkey",
                # Days that are over stay as they are.
                "ALTER TABLE auditlog_rollup SET (fillfactor = 85)",
            ),
            (
                "TRUNCATE auditlog_rollup, auditlog_rollupwindow",
                "ALTER TABLE auditlog_rollup ADD CONSTRAINT auditlog_rollup_pkey PRIMARY KEY (id)",
                "ALTER TABLE auditlog_rollupstate DROP CONSTRAINT rollups_are_counted_elsewhere",
            ),
        ),
        *(migrations.RemoveIndex("rollup", f"rollup_by_{name}") for name in PARTIAL),
        migrations.AlterField("rollup", "last_at", models.DateTimeField()),
        migrations.RemoveField("rollupwindow", "tools_of"),
        migrations.DeleteModel("RollupTool"),
        migrations.SeparateDatabaseAndState(state_operations=[migrations.DeleteModel("RollupState")]),
        migrations.CreateModel(
            name="RollupState",
            fields=[
                ("id", models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("counted_to", models.BigIntegerField()),
                ("near_from", models.DateTimeField()),
                ("late_counted_to", models.BigIntegerField()),
                ("began_at_id", models.BigIntegerField()),
                ("counted_from", models.DateTimeField()),
                ("minutes_from", models.DateTimeField()),
                ("recent_hours_from", models.DateTimeField()),
                ("hours_from", models.DateTimeField()),
                ("days_from", models.DateTimeField()),
                ("counted_at", models.DateTimeField()),
            ],
            options={
                "db_table": "auditlog_rollupprogress",
                "default_permissions": (),
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("id", 1)), name="rollups_have_one_progress")
                ],
            },
        ),
    ]
