from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sso", "0003_saml")]

    operations = [
        migrations.AddField(
            model_name="provider",
            name="metadata_end_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
    ]
