from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("servers", "0001_initial")]

    operations = [
        migrations.RemoveConstraint(model_name="server", name="server_url_is_http"),
        migrations.AddConstraint(
            model_name="server",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("url__startswith", "https://"),
                    ("url__startswith", "http://"),
                    ("url__in", ("builtin:quickstart", "builtin:gateway-admin")),
                    _connector="OR",
                ),
                name="server_url_is_http",
            ),
        ),
    ]
