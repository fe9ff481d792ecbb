"""Add the id of the hold to the row of a call."""

from django.db import migrations, models

from auditlog.indexes import DeclareIndex


class Migration(migrations.Migration):
    dependencies = [("auditlog", "0003_rules")]

    operations = [
        migrations.AddField("call", "hold_id", models.UUIDField(null=True)),
        DeclareIndex(
            model_name="call",
            index=models.Index(
                condition=models.Q(("hold_id__isnull", False)), fields=["hold_id", "created_at"], name="call_by_hold"
            ),
        ),
    ]
