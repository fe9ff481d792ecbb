from django.db import migrations

# A shared identity belongs to nobody, and to the very server it is used for.
KEEP = """
CREATE FUNCTION gateways_check_shared_identity() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.shared_identity_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM servers_identity i
        WHERE i.id = NEW.shared_identity_id AND i.server_id = NEW.server_id AND i.owner_id IS NULL
    ) THEN
        RAISE EXCEPTION 'a shared identity must be a service account of the same server' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER gateways_shared_identity_fits BEFORE INSERT OR UPDATE ON gateways_assignment
    FOR EACH ROW EXECUTE FUNCTION gateways_check_shared_identity();
"""

DROP = """
DROP TRIGGER gateways_shared_identity_fits ON gateways_assignment;
DROP FUNCTION gateways_check_shared_identity();
"""


class Migration(migrations.Migration):
    dependencies = [("gateways", "0001_initial")]
    operations = [migrations.RunSQL(KEEP, DROP)]
