"""Index admin events by the owner of their target, for the history of a person."""

from django.db import migrations, models
from django.db.models.fields.json import KeyTransform

from auditlog.indexes import AddIndexInUse


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("auditlog", "0005_event_by_action")]

    operations = [
        AddIndexInUse("event", models.Index(KeyTransform("owner", "changes"), name="event_by_owner")),
    ]
