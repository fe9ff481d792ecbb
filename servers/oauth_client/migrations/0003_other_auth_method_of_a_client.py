from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("upstream_oauth", "0002_say_whether_an_issuer_is_private")]

    operations = [
        migrations.AddField(
            "clientregistration",
            "other_auth_method",
            models.CharField(blank=True, db_default="", default="", editable=False, max_length=30),
        ),
    ]
