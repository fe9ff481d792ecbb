"""A trigger notifies the workers when a role starts or stops letting people use gateways."""

from django.db import migrations

CREATE = """
CREATE TRIGGER tell_cut AFTER UPDATE ON accounts_role FOR EACH ROW
WHEN (OLD.uses_gateways IS DISTINCT FROM NEW.uses_gateways) EXECUTE FUNCTION proxy_tell_cut()
"""
DROP = "DROP TRIGGER tell_cut ON accounts_role"


class Migration(migrations.Migration):
    dependencies = [("proxy", "0002_notify_workers"), ("accounts", "0002_split_capabilities")]

    operations = [migrations.RunSQL(CREATE, DROP)]
