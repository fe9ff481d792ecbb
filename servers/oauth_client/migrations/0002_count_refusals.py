"""Counts a grant's unclear refusals (refused refreshes without a final error code) separately from missing answers."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("upstream_oauth", "0001_initial")]

    operations = [
        migrations.AddField(
            "grant", "refusals", models.PositiveSmallIntegerField(db_default=0, default=0, editable=False)
        ),
    ]
