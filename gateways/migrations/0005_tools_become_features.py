"""Prompts, resources and templates stand beside tools: the table of tools becomes one of features, its rows kept."""

import django.db.models.deletion
from django.db import migrations, models

KINDS = [("tool", "Tool"), ("prompt", "Prompt"), ("resource", "Resource"), ("template", "Resource template")]


class Migration(migrations.Migration):
    dependencies = [("gateways", "0004_gateway_shared_identities")]

    operations = [
        migrations.RemoveConstraint("tool", "tool_name_is_unique_per_assignment"),
        migrations.RenameModel("Tool", "Feature"),
        migrations.AddField("feature", "kind", models.CharField(choices=KINDS, default="tool", max_length=10)),
        migrations.AlterField("feature", "name", models.CharField(max_length=2048)),
        migrations.AlterField("feature", "exposed_name", models.CharField(max_length=2048)),
        migrations.AlterField(
            "feature",
            "assignment",
            models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="features", to="gateways.assignment"
            ),
        ),
        migrations.AddConstraint(
            "feature",
            models.UniqueConstraint(
                fields=("assignment", "kind", "name"), name="feature_name_is_unique_per_assignment"
            ),
        ),
    ]
