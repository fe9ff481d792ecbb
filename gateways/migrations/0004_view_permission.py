"""Names the permission to view all gateways."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("gateways", "0003_give_tools")]

    operations = [
        migrations.AlterModelOptions(
            name="gateway",
            options={
                "ordering": ("name",),
                "permissions": (
                    ("see_gateway", "View all gateways"),
                    ("manage_gateway", "Basic gateway management"),
                    ("toggle_gateway", "Disable and enable gateways"),
                ),
            },
        ),
    ]
