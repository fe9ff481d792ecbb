from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("proxy", "0007_keep_log_levels")]

    operations = [
        migrations.AddField(model_name="upstreamsession", name="leased_by", field=models.UUIDField(null=True)),
        migrations.AddField(model_name="upstreamsession", name="leased_until", field=models.DateTimeField(null=True)),
    ]
