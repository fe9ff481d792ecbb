"""Splits some capabilities, and adds the required sign-in.

Roles get new capabilities, so that they allow everything that they allowed before.
"""

from django.db import migrations, models

# For each permission of version 1.0, the new permissions that a role needs in addition, to allow the same as in 1.0.
# `gateways.view_gateway` allowed viewing and using all gateways. Now it allows only using them: both versions check it
# before a gateway is used.
SPLIT = {
    "tokens.manage_token": ("tokens.view_token", "tokens.create_own_token"),
    "gateways.view_gateway": ("gateways.see_gateway",),
    "gateways.manage_gateway": ("gateways.see_gateway",),
    "gateways.toggle_gateway": ("gateways.see_gateway",),
    "servers.manage_server": ("servers.view_server",),
    "servers.toggle_server": ("servers.view_server",),
    "servers.manage_identity": ("servers.view_server", "servers.view_identity"),
    "accounts.manage_people": ("accounts.view_user",),
    "accounts.manage_workspace": ("accounts.view_workspacesettings",),
    "sinks.manage_sink": ("sinks.view_sink",),
    "scim.manage_provisioning": ("scim.view_provisioning",),
}
MODELS = {
    "view_token": "token",
    "create_own_token": "token",
    "see_gateway": "gateway",
    "view_provisioning": "provisioningkey",
}
SIGN_IN = {
    "max_length": 16,
    "choices": [
        ("none", "Nothing more"),
        ("second_factor", "A second factor"),
        ("organisation", "Sign-in by the organisation"),
    ],
    "default": "none",
    "db_default": "none",
}


def split(apps, schema_editor):
    role_model = apps.get_model("accounts", "Role")
    for role in role_model.objects.prefetch_related("permissions__content_type"):
        held = {f"{one.content_type.app_label}.{one.codename}" for one in role.permissions.all()}
        wanted = {new for old in held & SPLIT.keys() for new in SPLIT[old]} - held
        role.permissions.add(*(permission(apps, name) for name in sorted(wanted)))
    # Names of capabilities in API keys. Without `gateways:use` a key could no longer connect to every gateway.
    for key in apps.get_model("accounts", "ApiKey").objects.filter(capabilities__contains=["gateways:read"]):
        if "gateways:use" not in key.capabilities:
            key.capabilities.append("gateways:use")
            key.save(update_fields=["capabilities"])


def permission(apps, name):
    """Return the permission. Create it if it is missing: Django creates permissions only after all migrations."""
    app_label, codename = name.split(".")
    model = MODELS.get(codename) or codename.partition("_")[2]
    of_model, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(app_label=app_label, model=model)
    return apps.get_model("auth", "Permission").objects.get_or_create(
        content_type=of_model, codename=codename, defaults={"name": codename.replace("_", " ").capitalize()}
    )[0]


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0001_initial"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    operations = [
        # The reverse migration does not remove the new permissions: the previous version ignores them.
        migrations.RunPython(split, migrations.RunPython.noop),
        migrations.RunSQL("SET CONSTRAINTS ALL IMMEDIATE", migrations.RunSQL.noop),  # So that the tables can be altered.
        # Calls read the table of roles, and wait for the end of this migration from here on.
        migrations.AddField("workspacesettings", "required_sign_in", models.CharField(**SIGN_IN)),
        migrations.AddField("role", "required_sign_in", models.CharField(**SIGN_IN)),
        migrations.AddField("role", "uses_gateways", models.BooleanField(default=True, db_default=True)),
    ]
