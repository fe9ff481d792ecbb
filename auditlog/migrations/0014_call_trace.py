"""The trace that a call is part of is kept, and found by its id."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("auditlog", "0013_events_via_scim")]

    operations = [
        migrations.AddField("call", "trace_id", models.CharField(blank=True, db_default="", default="", max_length=32)),
        migrations.AddIndex(
            "call",
            models.Index(
                condition=models.Q(("trace_id", ""), _negated=True),
                fields=["trace_id", "created_at"],
                name="call_by_trace",
            ),
        ),
    ]
