from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sso", "0001_provider")]

    operations = [
        migrations.AddField(
            model_name="provider",
            name="signs_out_there",
            field=models.BooleanField(db_default=False, default=False),
        ),
    ]
