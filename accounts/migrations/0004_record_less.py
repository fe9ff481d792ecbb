from django.db import migrations

MOST = 64 * 1024


def lower(apps, schema_editor):
    settings = apps.get_model("accounts", "WorkspaceSettings")
    settings.objects.filter(payload_limit_bytes__gt=MOST).update(payload_limit_bytes=MOST)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0003_remember_dismissed_notices")]

    operations = [migrations.RunPython(lower, migrations.RunPython.noop)]
