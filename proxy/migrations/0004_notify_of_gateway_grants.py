"""A trigger notifies the workers when a gateway is closed to a person, as 0002_notify_workers does for other tables."""

from django.db import migrations

TABLE = "gateways_gatewaygrant"
TELL_CUT = (
    f"CREATE TRIGGER tell_cut_of_row AFTER UPDATE OR DELETE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION proxy_tell_cut()"
)


class Migration(migrations.Migration):
    dependencies = [("proxy", "0003_notify_of_roles"), ("gateways", "0005_access_requests")]

    operations = [migrations.RunSQL(TELL_CUT, f"DROP TRIGGER tell_cut_of_row ON {TABLE}")]
