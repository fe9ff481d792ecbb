"""Index expired and revoked tokens for their lists."""

from django.db import migrations, models

from auditlog.indexes import AddIndexInUse

ACCESS = models.Q(("kind", "access"))


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("tokens", "0004_own_agents_permission")]

    operations = [
        AddIndexInUse(
            "token",
            models.Index(
                condition=ACCESS, fields=["expires_at", "id"], include=("revoked_at",), name="access_by_expiry"
            ),
        ),
        AddIndexInUse(
            "token",
            models.Index(
                condition=models.Q(("kind", "access"), ("revoked_at__isnull", False)),
                fields=["-revoked_at", "id"],
                name="access_by_revocation",
            ),
        ),
    ]
