"""Adds `gateways:use` to provisioning keys that have `gateways:read`.

The former `gateways:read` was split into these two capabilities. Without `gateways:use`, a key could no longer change
people who have `gateways:use`.
"""

from django.db import migrations


def split(apps, schema_editor):
    for key in apps.get_model("scim", "ProvisioningKey").objects.filter(capabilities__contains=["gateways:read"]):
        if "gateways:use" not in key.capabilities:
            key.capabilities.append("gateways:use")
            key.save(update_fields=["capabilities"])


class Migration(migrations.Migration):
    dependencies = [("scim", "0001_initial")]

    operations = [
        migrations.AlterModelOptions(
            name="provisioningkey",
            options={
                "ordering": ("name",),
                "default_permissions": (),
                "permissions": (
                    ("view_provisioning", "View provisioning"),
                    ("manage_provisioning", "Manage provisioning"),
                ),
            },
        ),
        migrations.RunPython(split, migrations.RunPython.noop),
    ]
