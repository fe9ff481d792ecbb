from typing import Any

from django.db import migrations, models


def remove(apps: Any, schema_editor: Any) -> None:
    """Remove the sinks of the kind that is gone: nothing could be sent to them."""
    apps.get_model("sinks", "Sink").objects.filter(kind="kafka").delete()


class Migration(migrations.Migration):
    dependencies = [("sinks", "0003_more_kinds")]

    operations = [
        migrations.RunPython(remove, migrations.RunPython.noop),
        migrations.AlterField(
            model_name="sink",
            name="kind",
            field=models.CharField(
                choices=[
                    ("webhook", "Webhook"),
                    ("syslog", "Syslog"),
                    ("stdout", "Standard output"),
                    ("s3", "S3, JSON lines"),
                    ("s3_parquet", "S3, Parquet"),
                    ("otlp", "OpenTelemetry"),
                ],
                max_length=10,
            ),
        ),
    ]
