from django.db import migrations, models


class Migration(migrations.Migration):
    """A client that was entered before is for no endpoints that an administrator entered: it is entered again there."""

    dependencies = [("upstream_oauth", "0003_other_auth_method_of_a_client")]

    operations = [
        migrations.AddField(
            "clientregistration",
            name,
            models.CharField(blank=True, db_default="", default="", editable=False, max_length=500),
        )
        for name in ("token_endpoint", "revocation_endpoint")
    ]
