from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("auditlog", "0001_initial")]

    operations = [
        migrations.AddIndex(
            "call",
            models.Index(
                condition=models.Q(("feature_name", ""), _negated=True),
                fields=["feature_name", "-created_at"],
                name="call_by_tool",
            ),
        ),
    ]
