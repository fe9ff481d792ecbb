from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("configuration", "0001_managed_objects")]

    operations = [
        migrations.AddField("managedobject", "is_listed", models.BooleanField(db_default=True, default=True)),
    ]
