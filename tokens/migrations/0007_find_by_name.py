"""Tokens that can be used are looked for by their names, among those of everybody."""

from django.db import migrations, models
from django.db.models import Q
from django.db.models.functions import Lower

from auditlog.indexes import AddIndexInUse


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("tokens", "0006_find_what_is_in_use")]

    operations = [
        AddIndexInUse(
            "token",
            models.Index(
                Lower("name"),
                "id",
                include=("name", "prefix", "expires_at"),
                name="token_by_name",
                condition=Q(kind="access", revoked_at=None, digest__isnull=False),
            ),
        ),
    ]
