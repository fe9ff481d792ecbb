from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("proxy", "0005_tell_of_cuts_and_lists")]

    operations = [
        migrations.CreateModel(
            name="Cancellation",
            fields=[
                ("key", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("at", models.DateTimeField(db_index=True)),
            ],
        ),
    ]
