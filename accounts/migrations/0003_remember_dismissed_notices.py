from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0002_end_api_keys")]

    operations = [
        migrations.AddField("user", "notices_read_at", models.DateTimeField(blank=True, editable=False, null=True)),
    ]
