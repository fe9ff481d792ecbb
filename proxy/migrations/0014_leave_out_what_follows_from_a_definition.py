from django.db import migrations

# The effect of a feature follows from its annotations, which are told: that it is worked out later is no change.
FUNCTION = """
CREATE OR REPLACE FUNCTION proxy_tell_features() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unsaid text[] := ARRAY['id', 'first_seen_at', 'last_seen_at', 'changed_at', 'updated_at'{more}];
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id || ' ' || x.list)
        FROM (SELECT DISTINCT assignment_id, {list} AS list FROM new_rows) x
        JOIN gateways_assignment a ON a.id = x.assignment_id;
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id || ' ' || x.list)
        FROM (SELECT DISTINCT assignment_id, {list} AS list FROM old_rows) x
        JOIN gateways_assignment a ON a.id = x.assignment_id;
    ELSE
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id || ' ' || x.list), pg_notify('gateway', 'cut ')
        FROM (
            SELECT DISTINCT n.assignment_id, {list_now} AS list FROM new_rows n JOIN old_rows o ON o.id = n.id
            WHERE to_jsonb(n) - unsaid IS DISTINCT FROM to_jsonb(o) - unsaid
        ) x JOIN gateways_assignment a ON a.id = x.assignment_id;
    END IF;
    RETURN NULL;
END $$;
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION proxy_tell_features() SET search_path = %I, pg_temp', current_schema());
END $$;
"""
LIST = "CASE {of}kind WHEN 'tool' THEN 'tools' WHEN 'prompt' THEN 'prompts' ELSE 'resources' END"


def telling(more: str) -> str:
    return FUNCTION.format(more=more, list=LIST.format(of=""), list_now=LIST.format(of="n."))


class Migration(migrations.Migration):
    dependencies = [("proxy", "0013_tell_which_session_ended")]

    operations = [migrations.RunSQL(telling(", 'effect'"), telling(""))]
