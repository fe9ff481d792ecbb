"""Tools are listed and counted without the rows of their definitions, which are long.

No release had this index; the one that takes its place is made by `0010_list_tools_by_what_they_do`.
"""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("gateways", "0007_find_waiting_definitions")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AddIndex(
                    "feature",
                    models.Index(
                        fields=["assignment", "name"],
                        include=["enabled", "state", "exposed_name"],
                        name="tool_of_assignment",
                        condition=Q(kind="tool", missing_since=None),
                    ),
                ),
            ]
        ),
    ]
