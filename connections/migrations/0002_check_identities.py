"""Add a trigger that refuses an identity which does not fit its connection.

A row has a connection, an identity and an assignment. The identity must belong to the connection's user. The assignment
must be on the connection's gateway, and must be of the identity's server. The proxy's statement checks all this too;
the trigger keeps wrong rows out altogether.
"""

from django.db import migrations

CHECK = """
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

    operations = [migrations.RunSQL(CHECK, DROP)]
