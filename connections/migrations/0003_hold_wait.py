"""Adds the time for which a held call keeps its request open while the call waits for a decision."""

from django.db import migrations, models

from ui.missing import CreateMissing


class Migration(migrations.Migration):
    dependencies = [("connections", "0002_check_identities"), ("gateways", "0003_give_tools")]

    operations = [
        CreateMissing("HostAtGateway"),
        migrations.AddField("connection", "hold_wait", models.PositiveSmallIntegerField(blank=True, null=True)),
    ]
