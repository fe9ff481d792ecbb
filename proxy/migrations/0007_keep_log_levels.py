"""Keep the log level each session at a server was told."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("proxy", "0006_cancellation")]

    operations = [
        migrations.AddField(
            "upstreamsession", "log_level", models.CharField(blank=True, db_default="", max_length=12)
        ),
    ]
