"""Whether a connection holds a token that can be used is asked of all connections at once, on the dashboard."""

from django.db import migrations, models
from django.db.models import Q

from auditlog.indexes import AddIndexInUse


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("tokens", "0005_overlapping_and_collected_secrets")]

    operations = [
        AddIndexInUse(
            "token",
            models.Index(
                fields=["connection", "expires_at"],
                name="token_in_use",
                condition=Q(revoked_at=None, digest__isnull=False),
            ),
        ),
    ]
