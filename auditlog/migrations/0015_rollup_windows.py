"""Roll-ups of whole ranges of time that move on by the hour."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [("auditlog", "0014_call_trace")]

    operations = [
        migrations.CreateModel(
            name="RollupWindow",
            fields=[
                ("seconds", models.IntegerField(primary_key=True, serialize=False)),
                ("since", models.DateTimeField()),
                ("until", models.DateTimeField()),
                ("counted_to", models.BigIntegerField()),
                ("late_counted_to", models.BigIntegerField()),
            ],
            options={"default_permissions": ()},
        ),
    ]
