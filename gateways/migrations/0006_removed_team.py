"""Grants of a deleted team keep the id of the team."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("gateways", "0005_access_requests")]

    operations = [migrations.AddField("toolgrant", "removed_team", models.UUIDField(editable=False, null=True))]
