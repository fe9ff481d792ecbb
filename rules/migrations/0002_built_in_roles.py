"""Gives built-in roles of an existing workspace the capabilities that these roles have in new workspaces."""

from django.db import migrations

# By role: a capability that unchanged roles have, and the capabilities to add. Changed roles get none.
ADDED = {
    "Administrator": ("accounts.manage_workspace", ("rules.manage_rule", "rules.view_rule")),
    "Auditor": ("auditlog.view_event", ("rules.view_rule",)),
}


def add(apps, schema_editor):
    content_types, permissions = apps.get_model("contenttypes", "ContentType"), apps.get_model("auth", "Permission")
    of_rules, _ = content_types.objects.get_or_create(app_label="rules", model="rule")
    for role in apps.get_model("accounts", "Role").objects.filter(name__in=ADDED):
        shown_by, names = ADDED[role.name]
        app_label, codename = shown_by.split(".")
        if not role.permissions.filter(content_type__app_label=app_label, codename=codename).exists():
            continue
        for codename in (name.partition(".")[2] for name in names):
            role.permissions.add(
                permissions.objects.get_or_create(
                    content_type=of_rules, codename=codename, defaults={"name": codename.replace("_", " ").capitalize()}
                )[0]
            )


class Migration(migrations.Migration):
    dependencies = [
        ("rules", "0001_initial"),
        ("accounts", "0003_zone"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    # The reverse migration leaves the permissions, because the previous version ignores them.
    operations = [migrations.RunPython(add, migrations.RunPython.noop)]
