from django.conf import settings
from django.db import migrations, models
from django.db.models import Q
from django.db.models.deletion import PROTECT


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]

    operations = [
        migrations.AddField(
            "apikey",
            "revoke_reason",
            models.CharField(
                blank=True,
                choices=[
                    ("manual", "Revoked"),
                    ("password_reset", "Password reset"),
                    ("user_deactivated", "Owner cut off"),
                ],
                default="",
                max_length=20,
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            "apikey",
            "revoked_by",
            models.ForeignKey(
                blank=True, null=True, on_delete=PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddIndex("apikey", models.Index(fields=["-created_at", "id"], name="api_key_by_age")),
        migrations.AddConstraint(
            "apikey",
            models.CheckConstraint(
                condition=Q(revoke_reason="", revoked_at=None) | (Q(revoked_at__isnull=False) & ~Q(revoke_reason="")),
                name="revoked_api_key_says_why",
            ),
        ),
    ]
