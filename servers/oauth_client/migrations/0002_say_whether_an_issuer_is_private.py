from typing import Any

from django.db import migrations, models


def trust_what_is_there(apps: Any, schema_editor: Any) -> None:
    """Issuers that people signed in at before went on wherever they were; they still do."""
    apps.get_model("upstream_oauth", "Grant").objects.update(private=True)


class Migration(migrations.Migration):
    dependencies = [("upstream_oauth", "0001_sign_in_at_issuers")]

    operations = [
        migrations.AddField("grant", "private", models.BooleanField(db_default=False, default=False, editable=False)),
        migrations.RunPython(trust_what_is_there, migrations.RunPython.noop),
    ]
