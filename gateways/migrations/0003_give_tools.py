"""Database functions that return the features of a set of tools, and the features given to a person."""

from django.db import migrations

# The only definition of a set's rule. A tool whose effect nobody states counts as destructive; prompts and resources
# have no effect.
FITS = """
CREATE FUNCTION gateways_fits(kind text, exposed_name text, effect text, likes text[], effects text[])
RETURNS boolean LANGUAGE sql IMMUTABLE
RETURN (likes <> '{}' OR effects <> '{}')
    AND (likes = '{}' OR exposed_name LIKE ANY (likes))
    AND (effects = '{}' OR kind = 'tool' AND CASE effect WHEN 'unknown' THEN 'destructive' ELSE effect END = ANY (effects));
"""
DROP_FITS = "DROP FUNCTION gateways_fits(text, text, text, text[], text[])"

FEATURES_OF = """
CREATE FUNCTION gateways_features_of(sets uuid[])
RETURNS TABLE (tool_set_id uuid, feature_id uuid, assignment_id uuid, is_member boolean) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT s.id, f.id, a.id, EXISTS (
        SELECT FROM gateways_toolset_members m WHERE m.toolset_id = s.id AND m.feature_id = f.id
    )
    FROM gateways_toolset s
    JOIN gateways_assignment a ON a.gateway_id = s.gateway_id
    JOIN gateways_feature f ON f.assignment_id = a.id
    WHERE s.id = ANY (sets) AND s.archived_at IS NULL AND (
        EXISTS (SELECT FROM gateways_toolset_members m WHERE m.toolset_id = s.id AND m.feature_id = f.id)
        OR gateways_fits(f.kind, f.exposed_name, f.effect, s.likes, s.effects::text[])
    );
END;
"""
DROP_FEATURES_OF = "DROP FUNCTION gateways_features_of(uuid[])"

# Returns the features of an assignment that a person may use; with `for_feature`, checks that feature only. A feature
# must be in a set granted to the person on `granting_gateway` (NULL: any feature), and in the set `tool_limit`, which
# limits the app or agent (NULL: any feature).
GIVEN = """
CREATE FUNCTION gateways_given(granting_gateway uuid, person uuid, tool_limit uuid, for_assignment uuid, for_feature uuid)
RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    sets uuid[];
BEGIN
    IF granting_gateway IS NOT NULL THEN
        sets := ARRAY(
            SELECT DISTINCT r.tool_set_id FROM gateways_toolgrant r
            WHERE r.gateway_id = granting_gateway AND r.ended_at IS NULL AND (
                r.everyone OR r.user_id = person
                OR r.team_id IN (SELECT tu.team_id FROM accounts_team_users tu WHERE tu.user_id = person)
            )
        );
    END IF;
    IF for_feature IS NULL THEN
        RETURN ARRAY(
            SELECT f.id FROM gateways_feature f
            WHERE f.assignment_id = for_assignment
                AND (granting_gateway IS NULL OR f.id IN (
                    SELECT s.feature_id FROM gateways_features_of(sets) s WHERE s.assignment_id = for_assignment
                ))
                AND (tool_limit IS NULL OR f.id IN (
                    SELECT s.feature_id FROM gateways_features_of(ARRAY[tool_limit]) s
                    WHERE s.assignment_id = for_assignment
                ))
        );
    END IF;
    IF granting_gateway IS NOT NULL
        AND NOT EXISTS (SELECT FROM gateways_features_of(sets) s WHERE s.feature_id = for_feature)
        OR tool_limit IS NOT NULL
        AND NOT EXISTS (SELECT FROM gateways_features_of(ARRAY[tool_limit]) s WHERE s.feature_id = for_feature)
    THEN
        RETURN '{}';
    END IF;
    RETURN ARRAY[for_feature];
END $$;
DO $$ BEGIN
    EXECUTE format(
        'ALTER FUNCTION gateways_given(uuid, uuid, uuid, uuid, uuid) SET search_path = %I, pg_temp', current_schema()
    );
END $$;
"""
DROP_GIVEN = "DROP FUNCTION gateways_given(uuid, uuid, uuid, uuid, uuid)"


class Migration(migrations.Migration):
    dependencies = [("gateways", "0002_learn_lists"), ("accounts", "0001_initial")]

    operations = [
        migrations.RunSQL(FITS, DROP_FITS),
        migrations.RunSQL(FEATURES_OF, DROP_FEATURES_OF),
        migrations.RunSQL(GIVEN, DROP_GIVEN),
    ]
