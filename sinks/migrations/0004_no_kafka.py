from typing import Any
from uuid import uuid4

from django.db import migrations, models


def remove(apps: Any, schema_editor: Any) -> None:
    """Remove the sinks of the kind that is gone: nothing could be sent to them. The admin events say so."""
    events = apps.get_model("auditlog", "Event").objects
    for sink in apps.get_model("sinks", "Sink").objects.filter(kind="kafka"):
        events.create(
            correlation_id=uuid4(),
            actor_email="system",
            via="system",
            action="sink.removed",
            target_type="sink",
            target_id=str(sink.pk),
            target_label=sink.name,
        )
        sink.delete()


class Migration(migrations.Migration):
    dependencies = [("sinks", "0003_more_kinds"), ("auditlog", "0001_initial")]

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
