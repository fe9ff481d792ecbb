from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("servers", "0004_drop_identity_expiry_and_refresh")]

    operations = [
        migrations.AddField("server", "lists_live", models.BooleanField(db_default=False, default=False)),
    ]
