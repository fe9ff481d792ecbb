"""Add a column for tokens: whether the previous secret ends when the new secret is first used."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("tokens", "0002_fix_scope_at_creation")]

    operations = [
        migrations.AddField(
            "token", "previous_until_used", models.BooleanField(default=False, db_default=False, editable=False)
        ),
    ]
