"""A client that asks for what is not offered makes no error."""

from django.db import migrations, models

OUTCOMES = [
    ("ok", "ok"),
    ("tool_error", "tool error"),
    ("rpc_error", "protocol error"),
    ("unauthorized", "unauthorized"),
    ("denied", "denied"),
    ("rate_limited", "rate limited"),
    ("upstream_error", "upstream error"),
    ("timeout", "timeout"),
    ("bad_request", "bad request"),
    ("cancelled", "cancelled"),
    ("not_offered", "not offered"),
]


class Migration(migrations.Migration):
    dependencies = [("auditlog", "0008_calls_of_all_features")]

    operations = [migrations.AlterField("call", "outcome", models.CharField(choices=OUTCOMES, max_length=16))]
