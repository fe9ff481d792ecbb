"""Declare the permission `create_own_token` with the name "Connect own agents"."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("tokens", "0003_end_previous_when_used")]

    operations = [
        migrations.AlterModelOptions(
            name="token",
            options={
                "ordering": ("-created_at",),
                "permissions": (
                    ("manage_token", "Create and manage API tokens"),
                    ("create_own_token", "Connect own agents"),
                ),
            },
        ),
    ]
