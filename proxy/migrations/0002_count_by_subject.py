from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("proxy", "0001_initial"),
    ]

    operations = [
        # A counter lives for a minute, and nothing has read it so far.
        migrations.RunSQL("DELETE FROM proxy_ratecounter", migrations.RunSQL.noop),
        migrations.RemoveConstraint(
            model_name="ratecounter",
            name="one_counter_per_subject_and_minute",
        ),
        migrations.AddField(
            model_name="ratecounter",
            name="most",
            field=models.PositiveIntegerField(default=0),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="ratecounter",
            name="taken",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddConstraint(
            model_name="ratecounter",
            constraint=models.UniqueConstraint(
                fields=("subject_type", "subject_id"), name="one_counter_per_subject", nulls_distinct=False
            ),
        ),
    ]
