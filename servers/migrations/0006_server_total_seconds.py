from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("servers", "0005_lists_live")]

    operations = [
        migrations.AddField(
            model_name="server",
            name="total_seconds",
            field=models.PositiveSmallIntegerField(db_default=600, default=600),
        ),
        migrations.AddConstraint(
            model_name="server",
            constraint=models.CheckConstraint(
                condition=models.Q(("total_seconds__range", (1, 3600))), name="server_total_time_is_an_hour_at_most"
            ),
        ),
    ]
