"""Gives the role Administrator of an existing workspace a capability that this role has in new workspaces."""

from django.db import migrations

SHOWN_BY = "accounts.manage_workspace"  # A role without this one was changed by somebody.


def add(apps, schema_editor):
    content_types, permissions = apps.get_model("contenttypes", "ContentType"), apps.get_model("auth", "Permission")
    app_label, codename = SHOWN_BY.split(".")
    of_holds, _ = content_types.objects.get_or_create(app_label="approvals", model="hold")
    decide, _ = permissions.objects.get_or_create(
        content_type=of_holds, codename="decide_hold", defaults={"name": "Decide on held calls"}
    )
    for role in apps.get_model("accounts", "Role").objects.filter(name="Administrator"):
        if role.permissions.filter(content_type__app_label=app_label, codename=codename).exists():
            role.permissions.add(decide)


class Migration(migrations.Migration):
    dependencies = [
        ("approvals", "0002_ask"),
        ("rules", "0002_built_in_roles"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    # The reverse migration leaves the permission, because the previous version ignores it.
    operations = [migrations.RunPython(add, migrations.RunPython.noop)]
