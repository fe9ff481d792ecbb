"""What waits for a decision is counted for each page, among the definitions of all tools."""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("gateways", "0006_pinned_definitions")]

    operations = [
        migrations.AddIndex(
            "feature",
            models.Index(
                fields=["changed_at"],
                name="feature_needing_attention",
                condition=Q(missing_since=None, offered__isnull=False) & ~Q(state="quarantined"),
            ),
        ),
    ]
