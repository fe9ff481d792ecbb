from django.db import migrations, models


class Migration(migrations.Migration):
    """The table stays as it is; only the model that describes it is now of this app."""

    dependencies = [("accounts", "0004_record_less"), ("oauth", "0002_attempts")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.CreateModel(
                    name="Attempt",
                    fields=[
                        ("key", models.CharField(max_length=64, primary_key=True, serialize=False)),
                        ("since", models.DateTimeField(db_column="minute", db_index=True)),
                        ("count", models.PositiveIntegerField()),
                    ],
                    options={"db_table": "oauth_attempt"},
                )
            ]
        )
    ]
