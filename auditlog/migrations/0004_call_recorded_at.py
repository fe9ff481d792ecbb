from django.db import migrations, models

# A default that is not constant, given with the column, would rewrite the whole log.
ADD = """
ALTER TABLE auditlog_call ADD COLUMN recorded_at timestamptz;
ALTER TABLE auditlog_call ALTER COLUMN recorded_at SET DEFAULT clock_timestamp();
"""


class Migration(migrations.Migration):
    dependencies = [("auditlog", "0003_view_payload")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AddField(
                    "call",
                    "recorded_at",
                    models.DateTimeField(
                        db_default=models.Func(function="clock_timestamp", output_field=models.DateTimeField()),
                        editable=False,
                        null=True,
                    ),
                ),
            ],
            database_operations=[migrations.RunSQL(ADD, "ALTER TABLE auditlog_call DROP COLUMN recorded_at")],
        ),
    ]
