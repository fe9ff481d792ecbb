from typing import Any

from django.db import migrations, models
from django.db.models import Q


def know_what_the_url_says(apps: Any, schema_editor: Any) -> None:
    """Without TLS only private addresses may be called. Of the others it is found out by housekeeping."""
    apps.get_model("servers", "Server").objects.filter(url__startswith="http://").update(private=True)


class Migration(migrations.Migration):
    dependencies = [("servers", "0007_sign_in_at_issuers")]

    operations = [
        migrations.AddField(
            "server", "expected_issuer", models.CharField(blank=True, db_default="", default="", max_length=500)
        ),
        migrations.AddField(
            "server",
            "resource_sent",
            models.CharField(
                choices=[
                    ("server", "The address of the server"),
                    ("omit", "Nothing"),
                    ("fixed", "A fixed value"),
                ],
                db_default="server",
                default="server",
                max_length=10,
                verbose_name="resource",
            ),
        ),
        migrations.AddField(
            "server", "fixed_resource", models.CharField(blank=True, db_default="", default="", max_length=500)
        ),
        migrations.AddField(
            "server", "fixed_scopes", models.CharField(blank=True, db_default="", default="", max_length=1000)
        ),
        migrations.AddField(
            "server", "private", models.BooleanField(blank=True, null=True, verbose_name="at a private address")
        ),
        migrations.AddConstraint(
            "server",
            models.CheckConstraint(
                condition=~Q(resource_sent="fixed") | ~Q(fixed_resource=""), name="fixed_resource_is_named"
            ),
        ),
        migrations.RunPython(know_what_the_url_says, migrations.RunPython.noop),
        migrations.AlterField(
            "identity",
            "sign_in_reason",
            models.CharField(
                blank=True,
                choices=[
                    ("", ""),
                    ("refused", "The issuer ended the sign-in."),
                    ("expired", "The sign-in has expired, and the issuer gave nothing to renew it with."),
                    ("client", "The issuer does not know this gateway any more."),
                    ("moved", "The address or the issuer of the server was changed."),
                    ("token", "The server does not accept the sign-in any more."),
                    ("settings", "How one signs in at the server was changed."),
                    ("scope", "The server asks for more rights than were granted."),
                ],
                db_default="",
                default="",
                editable=False,
                max_length=10,
            ),
        ),
    ]
