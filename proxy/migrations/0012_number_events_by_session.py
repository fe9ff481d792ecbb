from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("proxy", "0011_keep_events_of_streams")]

    operations = [
        migrations.RemoveConstraint("streamevent", "one_event_per_stream_and_number"),
        migrations.AddConstraint(
            "streamevent",
            models.UniqueConstraint(
                fields=("session_id", "stream_id", "number"), name="one_event_per_session_stream_and_number"
            ),
        ),
    ]
