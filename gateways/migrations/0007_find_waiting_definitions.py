"""What waits for a decision is counted for each page, among the definitions of all tools."""

from django.db import migrations, models
from django.db.models import Q

from auditlog.indexes import AddIndexInUse


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("gateways", "0006_pinned_definitions")]

    operations = [
        AddIndexInUse(
            "feature",
            models.Index(
                fields=["changed_at"],
                name="feature_needing_attention",
                condition=Q(missing_since=None, offered__isnull=False) & ~Q(state="quarantined"),
            ),
        ),
    ]
