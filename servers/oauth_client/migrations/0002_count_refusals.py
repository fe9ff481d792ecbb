"""Counts a grant's unclear refusals separately from missing answers.

A refusal is unclear if its error code does not say that the grant has ended.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("upstream_oauth", "0001_initial")]

    operations = [
        migrations.AddField(
            "grant", "refusals", models.PositiveSmallIntegerField(db_default=0, default=0, editable=False)
        ),
    ]
