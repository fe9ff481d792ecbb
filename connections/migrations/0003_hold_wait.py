"""Adds the time for which a held call keeps its request open while the call waits for a decision."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("connections", "0002_check_identities")]

    operations = [
        migrations.AddField("connection", "hold_wait", models.PositiveSmallIntegerField(blank=True, null=True)),
    ]
