"""The trace that a call is part of is kept, and found by its id."""

from django.db import migrations, models

from auditlog.indexes import DeclareIndex


class Migration(migrations.Migration):
    """A constant default is said in the catalogue, so that the log is neither read nor written."""

    dependencies = [("auditlog", "0013_events_via_scim")]

    operations = [
        migrations.AddField("call", "trace_id", models.CharField(blank=True, db_default="", default="", max_length=32)),
        DeclareIndex(
            "call",
            models.Index(
                condition=models.Q(("trace_id", ""), _negated=True),
                fields=["trace_id", "created_at"],
                name="call_by_trace",
            ),
        ),
    ]
