"""Database functions that return the features in tool sets, and the features given to people.

Adds the fields for the titles and descriptions that clients see instead of the server's titles and descriptions.
"""

from importlib import import_module

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import Q

from gateways.models.feature import check_visible
from ui.missing import CreateMissing

# Returns whether a feature fits the rule of a tool set; the rule is not implemented anywhere else. A tool whose effect
# nobody states counts as destructive. Prompts and resources have no effect.
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

# Returns the features of an assignment that are in any of these sets. A person may have hundreds of sets, and each rule
# is compared with each feature. So the patterns of all sets with the same effects are combined into one rule.
IN_SETS = """
CREATE FUNCTION gateways_in_sets(sets uuid[], for_assignment uuid) RETURNS SETOF uuid LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT m.feature_id
    FROM gateways_assignment a
    JOIN gateways_toolset s ON s.gateway_id = a.gateway_id AND s.id = ANY (sets) AND s.archived_at IS NULL
    JOIN gateways_toolset_members m ON m.toolset_id = s.id
    JOIN gateways_feature f ON f.id = m.feature_id AND f.assignment_id = a.id
    WHERE a.id = for_assignment
    UNION
    SELECT f.id
    FROM (
        SELECT array_agg(DISTINCT l.pattern) AS likes, s.effects
        FROM gateways_assignment a
        JOIN gateways_toolset s ON s.gateway_id = a.gateway_id AND s.id = ANY (sets) AND s.archived_at IS NULL
        CROSS JOIN unnest(CASE WHEN s.likes = '{}' AND s.effects <> '{}' THEN ARRAY['%'] ELSE s.likes END) l (pattern)
        WHERE a.id = for_assignment
        GROUP BY s.effects
        OFFSET 0
    ) r
    JOIN gateways_feature f ON f.assignment_id = for_assignment
        AND gateways_fits(f.kind, f.exposed_name, f.effect, r.likes, r.effects::text[]);
END;
"""
DROP_IN_SETS = "DROP FUNCTION gateways_in_sets(uuid[], uuid)"

# Returns the sets of a gateway granted to one of these people: as everybody, through a team, or in person. Only
# `gateways_given` may call this function, because `gateways_given` sets the search path.
SETS_GIVEN = """
CREATE FUNCTION gateways_sets_given(granting_gateway uuid, people uuid[]) RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN ARRAY(
        SELECT DISTINCT r.tool_set_id FROM gateways_toolgrant r
        WHERE r.gateway_id = granting_gateway AND r.ended_at IS NULL AND (
            r.everyone OR r.user_id = ANY (people)
            OR r.team_id IN (SELECT tu.team_id FROM accounts_team_users tu WHERE tu.user_id = ANY (people))
        )
    );
END $$;
"""
DROP_SETS_GIVEN = "DROP FUNCTION gateways_sets_given(uuid, uuid[])"

# Returns the features of an assignment that one of `people` may use; with `for_feature`, checks that feature only. A
# feature must be in a set that is granted to one of `people` on `granting_gateway`, and in the set `tool_limit`, which
# limits the app or agent. If `granting_gateway` or `tool_limit` is NULL, its condition does not apply.
GIVEN = """
CREATE FUNCTION gateways_given(
    granting_gateway uuid, people uuid[], tool_limit uuid, for_assignment uuid, for_feature uuid
) RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    sets uuid[];
BEGIN
    IF granting_gateway IS NOT NULL THEN
        sets := gateways_sets_given(granting_gateway, people);
    END IF;
    IF for_feature IS NULL THEN
        RETURN ARRAY(
            SELECT f.id FROM gateways_feature f
            WHERE f.assignment_id = for_assignment
                AND (granting_gateway IS NULL OR f.id IN (SELECT s FROM gateways_in_sets(sets, for_assignment) s))
                AND (tool_limit IS NULL OR f.id IN (
                    SELECT s FROM gateways_in_sets(ARRAY[tool_limit], for_assignment) s
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
        'ALTER FUNCTION gateways_given(uuid, uuid[], uuid, uuid, uuid) SET search_path = %I, pg_temp', current_schema()
    );
END $$;
"""
DROP_GIVEN = "DROP FUNCTION gateways_given(uuid, uuid[], uuid, uuid, uuid)"

# Databases made by the first commit of release 1.0.0 have a trigger without `said_effect`.
SET_EFFECT = import_module("gateways.migrations.0002_learn_lists").SET_EFFECT
SET_EFFECT_AGAIN = SET_EFFECT.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION").replace(
    "CREATE TRIGGER", "CREATE OR REPLACE TRIGGER"
)


class Migration(migrations.Migration):
    dependencies = [("gateways", "0002_learn_lists"), ("accounts", "0001_initial")]

    operations = [
        CreateMissing("ToolSet", "ToolGrant"),
        migrations.AlterField(
            "toolgrant",
            "team",
            models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="tool_grants",
                to="accounts.team",
            ),
        ),
        migrations.AddField(
            "toolgrant",
            "team_name",
            models.CharField(blank=True, db_default="", default="", editable=False, max_length=80),
        ),
        migrations.RemoveConstraint("toolgrant", "tool_grant_has_one_subject"),
        migrations.AddConstraint(
            "toolgrant",
            models.CheckConstraint(
                condition=Q(everyone=True, team=None, user=None)
                | Q(everyone=False, team__isnull=False, user=None)
                | Q(everyone=False, team=None, user__isnull=False)
                | Q(everyone=False, team=None, user=None, ended_at__isnull=False),
                name="tool_grant_has_one_subject",
            ),
        ),
        migrations.RunSQL(FITS, DROP_FITS),
        migrations.RunSQL(FEATURES_OF, DROP_FEATURES_OF),
        migrations.RunSQL(IN_SETS, DROP_IN_SETS),
        migrations.RunSQL(SETS_GIVEN, DROP_SETS_GIVEN),
        migrations.RunSQL(GIVEN, DROP_GIVEN),
        # Calls read these tables, and wait for the end of this migration from here on.
        CreateMissing("Feature", "Gateway"),
        migrations.RunSQL(SET_EFFECT_AGAIN, migrations.RunSQL.noop),
        migrations.AddField(
            "feature",
            "said_title",
            models.CharField(blank=True, db_default="", default="", max_length=200, validators=[check_visible]),
        ),
        migrations.AddField(
            "feature",
            "said_description",
            models.TextField(blank=True, db_default="", default="", max_length=4_000, validators=[check_visible]),
        ),
    ]
