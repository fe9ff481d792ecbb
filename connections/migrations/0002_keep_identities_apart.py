from django.db import migrations

# A connection carries only identities of its own user, for the very server of an assignment on its
# own gateway. The proxy's statement asks the same again; this keeps wrong rows out altogether.
KEEP = """
CREATE FUNCTION connections_check_identity() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM connections_connection c, gateways_assignment a, servers_identity i
        WHERE c.id = NEW.connection_id AND a.id = NEW.assignment_id AND i.id = NEW.identity_id
          AND a.gateway_id = c.gateway_id AND i.server_id = a.server_id AND i.owner_id = c.user_id
    ) THEN
        RAISE EXCEPTION 'a connection carries its own user''s identities only' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER connections_identity_fits BEFORE INSERT OR UPDATE ON connections_connectionidentity
    FOR EACH ROW EXECUTE FUNCTION connections_check_identity();
"""

DROP = """
DROP TRIGGER connections_identity_fits ON connections_connectionidentity;
DROP FUNCTION connections_check_identity();
"""


class Migration(migrations.Migration):
    dependencies = [("connections", "0001_initial")]
    operations = [migrations.RunSQL(KEEP, DROP)]
