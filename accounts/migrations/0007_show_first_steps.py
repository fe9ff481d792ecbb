from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0006_remember_invitations")]

    operations = [
        migrations.AddField("workspacesettings", "setup_steps", models.BooleanField(default=True, db_default=True)),
    ]
