"""Tools are listed and counted without the rows of their definitions, which are long."""

from django.db import migrations, models
from django.db.models import Q

from auditlog.indexes import AddIndexInUse


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("gateways", "0007_find_waiting_definitions")]

    operations = [
        AddIndexInUse(
            "feature",
            models.Index(
                fields=["assignment", "name"],
                include=["enabled", "state", "exposed_name"],
                name="tool_of_assignment",
                condition=Q(kind="tool", missing_since=None),
            ),
        ),
    ]
