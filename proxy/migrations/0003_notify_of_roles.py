"""A trigger notifies the workers when people with a role may no longer use gateways.

The triggers of 0002_notify_workers are created again, because databases made by the first commits of release 1.0.0 lack
those on tables that came later.
"""

from importlib import import_module

from django.db import migrations

CREATE = """
CREATE TRIGGER tell_cut AFTER UPDATE ON accounts_role FOR EACH ROW
WHEN (OLD.uses_gateways IS DISTINCT FROM NEW.uses_gateways) EXECUTE FUNCTION proxy_tell_cut()
"""
DROP = "DROP TRIGGER tell_cut ON accounts_role"

before = import_module("proxy.migrations.0002_notify_workers")
FUNCTIONS_AGAIN = before.FUNCTIONS.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")


class Migration(migrations.Migration):
    dependencies = [
        ("proxy", "0002_notify_workers"),
        ("accounts", "0002_split_capabilities"),
        ("connections", "0003_hold_wait"),
        ("gateways", "0003_give_tools"),
    ]

    operations = [
        migrations.RunSQL(CREATE, DROP),
        migrations.RunSQL(FUNCTIONS_AGAIN, migrations.RunSQL.noop),
        *(
            migrations.RunSQL(f"CREATE OR REPLACE TRIGGER {name} {definition}", migrations.RunSQL.noop)
            for _, name, definition in before.triggers()
        ),
    ]
