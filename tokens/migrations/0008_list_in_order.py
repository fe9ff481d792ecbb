"""The list of everybody's tokens is in the order of their ends, where many may end at one moment."""

from django.db import migrations, models
from django.db.models import Q

from auditlog.indexes import AddIndexInUse


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("tokens", "0007_find_by_name")]

    operations = [
        AddIndexInUse(
            "token",
            models.Index(
                fields=["expires_at", "id"],
                include=("connection", "name", "prefix"),
                name="token_by_end",
                condition=Q(kind="access", revoked_at=None, digest__isnull=False),
            ),
        ),
    ]
