from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("servers", "0008_sign_in_settings_and_private_addresses")]

    operations = [
        migrations.AddField(
            "server", "authorization_endpoint", models.CharField(blank=True, db_default="", default="", max_length=500)
        ),
        migrations.AddField(
            "server", "token_endpoint", models.CharField(blank=True, db_default="", default="", max_length=500)
        ),
        migrations.AddField(
            "server", "revocation_endpoint", models.CharField(blank=True, db_default="", default="", max_length=500)
        ),
        migrations.AddField(
            "server",
            "assume_pkce",
            models.BooleanField(db_default=False, default=False, verbose_name="assume PKCE"),
        ),
        migrations.AddField(
            "server", "sign_ins_begun", models.PositiveIntegerField(db_default=0, default=0, editable=False)
        ),
        migrations.AddConstraint(
            "server",
            models.CheckConstraint(
                condition=Q(authorization_endpoint="", token_endpoint="", revocation_endpoint="")
                | ~Q(authorization_endpoint="") & ~Q(token_endpoint=""),
                name="entered_endpoints_are_complete",
            ),
        ),
    ]
