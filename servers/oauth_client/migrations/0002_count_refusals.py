"""Counts unclear refusals of a grant's refresh apart from requests without an answer."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("upstream_oauth", "0001_initial")]

    operations = [
        migrations.AddField(
            "grant", "refusals", models.PositiveSmallIntegerField(db_default=0, default=0, editable=False)
        ),
    ]
