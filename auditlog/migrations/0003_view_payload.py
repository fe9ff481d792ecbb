from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("auditlog", "0002_call_by_tool")]

    operations = [
        migrations.AlterModelOptions(
            name="call",
            options={
                "default_permissions": ("view",),
                "ordering": ("-created_at", "-id"),
                "permissions": (("view_payload", "See recorded payloads"),),
            },
        ),
    ]
