from django.db import migrations, models

# What servers offer has changed: the gateways that show it are told, and which of the lists it is.
FUNCTION = """
CREATE OR REPLACE FUNCTION proxy_tell_features() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unsaid text[] := ARRAY['id', 'first_seen_at', 'last_seen_at', 'changed_at', 'updated_at'];
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id{list})
        FROM (SELECT DISTINCT assignment_id, kind FROM new_rows) x JOIN gateways_assignment a ON a.id = x.assignment_id;
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id{list})
        FROM (SELECT DISTINCT assignment_id, kind FROM old_rows) x JOIN gateways_assignment a ON a.id = x.assignment_id;
    ELSE
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id{list}), pg_notify('gateway', 'cut ')
        FROM (
            SELECT DISTINCT n.assignment_id, n.kind FROM new_rows n JOIN old_rows o ON o.id = n.id
            WHERE to_jsonb(n) - unsaid IS DISTINCT FROM to_jsonb(o) - unsaid
        ) x JOIN gateways_assignment a ON a.id = x.assignment_id;
    END IF;
    RETURN NULL;
END $$;
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION proxy_tell_features() SET search_path = %I, pg_temp', current_schema());
END $$;
"""
LIST = " || CASE x.kind WHEN 'tool' THEN ' tools' WHEN 'prompt' THEN ' prompts' ELSE ' resources' END"


class Migration(migrations.Migration):
    dependencies = [("proxy", "0009_keep_requests_of_servers"), ("gateways", "0006_pinned_definitions")]

    operations = [
        migrations.AddField(
            model_name="session", name="subscriptions", field=models.JSONField(default=list, db_default=[])
        ),
        migrations.RunSQL(FUNCTION.replace("{list}", LIST), FUNCTION.replace("{list}", "")),
    ]
