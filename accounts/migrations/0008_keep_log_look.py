from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0007_show_first_steps")]

    operations = [
        migrations.AddField(
            "user", "log_look", models.JSONField(blank=True, db_default={}, default=dict, editable=False)
        ),
    ]
