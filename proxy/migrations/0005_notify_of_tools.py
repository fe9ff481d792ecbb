"""Create the triggers that are missing in a database made by the first commit of release 1.0.0.

Newer databases get these triggers from 0002_notify_workers. Later commits added the triggers to that file, and
added the models of tool sets and grants to the initial migrations.
"""

from importlib import import_module

from django.db import migrations

before = import_module("proxy.migrations.0002_notify_workers")
FUNCTIONS_AGAIN = before.FUNCTIONS.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
CHANGED = {
    "accounts_team_users",
    "connections_hostatgateway",
    "gateways_gateway",
    "gateways_toolgrant",
    "gateways_toolset",
    "gateways_toolset_members",
}


class Migration(migrations.Migration):
    dependencies = [
        ("proxy", "0004_notify_of_gateway_grants"),
        ("connections", "0003_hold_wait"),
        ("gateways", "0003_give_tools"),
    ]

    operations = [
        migrations.RunSQL(FUNCTIONS_AGAIN, migrations.RunSQL.noop),
        *(
            migrations.RunSQL(f"CREATE OR REPLACE TRIGGER {name} {definition}", migrations.RunSQL.noop)
            for table, name, definition in before.triggers()
            if table in CHANGED
        ),
    ]
