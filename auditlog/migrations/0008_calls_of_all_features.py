"""Calls are of prompts and resources too."""

from django.db import migrations, models

KINDS = [
    ("", "none"),
    ("tool", "tool"),
    ("prompt", "prompt"),
    ("resource", "resource"),
    ("template", "resource template"),
]


class Migration(migrations.Migration):
    dependencies = [("auditlog", "0007_features_are_tools")]

    operations = [
        migrations.AlterField("call", "feature_type", models.CharField(blank=True, choices=KINDS, max_length=10)),
    ]
