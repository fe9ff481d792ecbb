"""What the error of a call said is kept."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("auditlog", "0009_outcome_not_offered")]

    operations = [
        migrations.AddField(
            "call", "error_text", models.CharField(blank=True, db_default="", default="", max_length=300)
        ),
    ]
