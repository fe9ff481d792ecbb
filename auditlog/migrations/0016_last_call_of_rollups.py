"""Roll-ups know when the newest of their calls began; those of tools are kept in short rows as well."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [("auditlog", "0015_rollup_windows")]

    operations = [
        migrations.AddField("rollup", "last_at", models.DateTimeField(null=True)),
        migrations.AddField("rollupwindow", "tools_of", models.CharField(max_length=160, default="", db_default="")),
        migrations.CreateModel(
            name="RollupTool",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("gateway_id", models.UUIDField()),
                ("server_id", models.UUIDField()),
                ("feature_name", models.CharField(max_length=300)),
                ("calls", models.BigIntegerField()),
                ("last_at", models.DateTimeField()),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("gateway_id", "server_id", "feature_name"), name="rollup_tool_counts_once"
                    )
                ],
            },
        ),
    ]
