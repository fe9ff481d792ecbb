"""Index admin events by action, for lists of requests."""

from django.db import migrations, models

from auditlog.indexes import AddIndexInUse


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("auditlog", "0004_holds")]

    operations = [
        AddIndexInUse("event", models.Index(fields=["action", "created_at"], name="event_by_action")),
    ]
