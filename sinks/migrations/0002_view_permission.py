"""Names the permission to view log sinks."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("sinks", "0001_initial")]

    operations = [
        migrations.AlterModelOptions(
            name="sink",
            options={
                "ordering": ("name",),
                "default_permissions": (),
                "permissions": (
                    ("view_sink", "View log sinks"),
                    ("manage_sink", "Send the logs elsewhere"),
                ),
            },
        ),
    ]
