"""Create a trigger that checks shared identities, and a trigger that sets the effect of tools.

Also create a function that stores the lists of features that a server returns.
"""

from django.db import migrations

# The shared identity of an assignment must have no owner, and must be for the server of this assignment.
CHECK_SHARED_IDENTITY = """
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
DROP_CHECK = """
DROP TRIGGER gateways_shared_identity_fits ON gateways_assignment;
DROP FUNCTION gateways_check_shared_identity();
"""

# Both the proxy and the pages call this function for every list that a server returns.
LEARN = """
CREATE FUNCTION gateways_learn(for_assignment uuid, for_identity uuid, of_kind text, said jsonb, fault text)
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    a record;
    r record;
    f gateways_feature;
    moment timestamptz := clock_timestamp();
    is_fresh boolean;      -- The feature has no row yet.
    is_first boolean;      -- No definition of it was ever approved.
    is_same boolean;       -- The definition equals the approved one, except `_meta`.
    is_taken boolean;      -- The definition becomes the one clients see.
    is_another boolean;    -- The definition differs from the server's last one.
    is_unheard boolean;    -- The definition is not in the feature's history.
    state_now text;
    state_before text;
    last_hash text;
    told integer := 0;
    most_told CONSTANT integer := 20;
    kept CONSTANT integer := 20;
    names text[];
    correlation uuid := gen_random_uuid();
BEGIN
    SELECT x.id, x.identity_scheme, x.tool_policy, g.new_definitions, g.changed_definitions, s.lists_live INTO a
    FROM gateways_assignment x
    JOIN gateways_gateway g ON g.id = x.gateway_id
    JOIN servers_server s ON s.id = x.server_id
    WHERE x.id = for_assignment AND x.removed_at IS NULL
    FOR NO KEY UPDATE OF x;  -- Serialises the lists of an assignment.
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Lists differ between identities only if each person uses their own.
    IF a.identity_scheme <> 'per_user' THEN
        for_identity := NULL;
    END IF;
    INSERT INTO gateways_listing AS l (id, assignment_id, identity_id, kind, asked_at, learnt_at, error)
    VALUES (
        gen_random_uuid(), for_assignment, for_identity, of_kind, moment, CASE WHEN said IS NOT NULL THEN moment END,
        left(fault, 40)
    )
    ON CONFLICT (assignment_id, identity_id, kind) DO UPDATE SET
        asked_at = excluded.asked_at, learnt_at = coalesce(excluded.learnt_at, l.learnt_at), error = excluded.error;
    IF said IS NULL THEN
        RETURN;
    END IF;

    FOR r IN
        SELECT v.* FROM jsonb_to_recordset(said) AS v (
            name text, position integer, exposed_name text, title text, description text, input_schema jsonb,
            annotations jsonb, hash text, text text, shown text, hidden text
        ) ORDER BY v.name
    LOOP
        SELECT x.* INTO f FROM gateways_feature x
        WHERE x.assignment_id = for_assignment AND x.kind = of_kind AND x.name = r.name
        FOR NO KEY UPDATE;
        is_fresh := NOT FOUND;
        state_before := CASE WHEN NOT is_fresh THEN f.state END;
        is_first := is_fresh OR f.approved = '';
        is_same := NOT is_first AND f.definition_hash = r.hash;
        last_hash := CASE WHEN is_fresh THEN '' WHEN f.offered_hash <> '' THEN f.offered_hash ELSE f.definition_hash END;
        is_another := last_hash NOT IN ('', r.hash);
        -- Definitions with hidden characters, and those of quarantined features, always wait for a decision.
        is_taken := r.hidden = '' AND state_before IS DISTINCT FROM 'quarantined' AND CASE
            WHEN is_same THEN true
            WHEN is_fresh OR f.state = 'new' THEN a.new_definitions = 'approve'
            WHEN is_first THEN true  -- A row of an earlier version, without text.
            ELSE a.changed_definitions = 'accept'
        END;
        state_now := CASE
            WHEN state_before = 'quarantined' THEN state_before
            WHEN is_same OR is_taken THEN 'approved'
            WHEN is_first THEN 'new'
            ELSE 'held'
        END;
        IF is_fresh THEN
            INSERT INTO gateways_feature AS x (
                id, assignment_id, kind, name, exposed_name, title, description, input_schema, annotations, position,
                -- Under `selected` new features start disabled.
                enabled, state, approved, shown, definition_hash, offered, offered_hash, first_seen_at, last_seen_at
            ) VALUES (
                gen_random_uuid(), for_assignment, of_kind, r.name, r.exposed_name, r.title, r.description,
                r.input_schema, r.annotations, r.position, a.tool_policy <> 'selected', state_now,
                CASE WHEN is_taken THEN r.text ELSE '' END, CASE WHEN is_taken THEN r.shown END,
                CASE WHEN is_taken THEN r.hash ELSE '' END, CASE WHEN NOT is_taken THEN r.text END,
                CASE WHEN is_taken THEN '' ELSE r.hash END, moment, moment
            ) RETURNING * INTO f;
        ELSIF is_another OR f.missing_since IS NOT NULL OR f.last_seen_at < moment - interval '1 minute'
            OR (f.state, f.position, f.exposed_name) IS DISTINCT FROM (state_now, r.position, r.exposed_name)
            OR (is_taken AND (f.approved, f.shown) IS DISTINCT FROM (r.text, r.shown))
            OR (NOT is_taken AND NOT is_same AND f.offered IS DISTINCT FROM r.text)
            OR (is_same AND f.offered IS NOT NULL)
        THEN
            UPDATE gateways_feature x SET
                exposed_name = r.exposed_name,
                position = r.position,
                title = CASE WHEN is_taken OR is_first THEN r.title ELSE f.title END,
                description = CASE WHEN is_taken OR is_first THEN r.description ELSE f.description END,
                input_schema = CASE WHEN is_taken OR is_first THEN r.input_schema ELSE f.input_schema END,
                annotations = CASE WHEN is_taken OR is_first THEN r.annotations ELSE f.annotations END,
                state = state_now,
                approved = CASE WHEN is_taken THEN r.text ELSE f.approved END,
                shown = CASE WHEN is_taken THEN r.shown ELSE f.shown END,
                definition_hash = CASE WHEN is_taken THEN r.hash ELSE f.definition_hash END,
                offered = CASE WHEN NOT is_taken AND NOT is_same THEN r.text END,
                offered_hash = CASE WHEN is_taken OR is_same THEN '' ELSE r.hash END,
                changed_at = CASE WHEN is_another THEN moment ELSE f.changed_at END,
                last_seen_at = moment,
                missing_since = NULL
            WHERE x.id = f.id;
        END IF;
        IF is_fresh OR is_another OR is_first THEN
            INSERT INTO gateways_featureversion AS v (id, feature_id, hash, definition, first_seen_at, approved_at)
            VALUES (gen_random_uuid(), f.id, r.hash, r.text, moment, CASE WHEN is_taken THEN moment END)
            ON CONFLICT (feature_id, hash) DO NOTHING;
            is_unheard := FOUND;
            IF is_taken AND NOT is_unheard THEN
                UPDATE gateways_featureversion v SET approved_at = coalesce(v.approved_at, moment)
                WHERE v.feature_id = f.id AND v.hash = r.hash;
            END IF;
            DELETE FROM gateways_featureversion v WHERE v.feature_id = f.id AND v.id IN (
                SELECT w.id FROM gateways_featureversion w
                WHERE w.feature_id = f.id AND w.hash NOT IN (f.definition_hash, r.hash)
                ORDER BY w.first_seen_at DESC, w.id OFFSET kept
            );
            -- One event for each definition, and one each time it replaces what clients see.
            IF state_now = 'new' AND (is_fresh OR is_another AND is_unheard)
                OR is_another AND (is_unheard OR is_taken AND NOT is_same)
            THEN
                told := told + 1;
                IF told <= most_told THEN
                    INSERT INTO auditlog_event (
                        uid, created_at, actor_id, actor_email, via, ip, action, target_type, target_id, target_label,
                        changes, correlation_id
                    ) VALUES (
                        gen_random_uuid(), moment, NULL, 'system', 'system', NULL,
                        CASE WHEN state_now = 'new' THEN 'feature.held' ELSE 'feature.changed' END,
                        'feature', f.id::text, left(r.exposed_name, 200),
                        jsonb_build_object(
                            'definition', jsonb_build_array(nullif(left(last_hash, 12), ''), left(r.hash, 12)),
                            'state', jsonb_build_array(state_before, state_now)
                        ), correlation
                    );
                END IF;
            END IF;
        END IF;
        IF for_identity IS NOT NULL THEN
            INSERT INTO gateways_feature_identities (feature_id, identity_id) VALUES (f.id, for_identity)
            ON CONFLICT (feature_id, identity_id) DO NOTHING;
        END IF;
    END LOOP;
    IF told > most_told THEN
        INSERT INTO auditlog_event (
            uid, created_at, actor_id, actor_email, via, ip, action, target_type, target_id, target_label, changes,
            correlation_id
        )
        SELECT gen_random_uuid(), moment, NULL, 'system', 'system', NULL, 'feature.changed', 'assignment',
            for_assignment::text, left(s.name || ' on ' || g.name, 200),
            jsonb_build_object('more', jsonb_build_array(NULL, told - most_told)), correlation
        FROM gateways_assignment x JOIN gateways_gateway g ON g.id = x.gateway_id JOIN servers_server s ON s.id = x.server_id
        WHERE x.id = for_assignment;
    END IF;

    -- If lists differ by session, a single one does not show which features are gone.
    IF a.lists_live THEN
        RETURN;
    END IF;
    names := ARRAY(SELECT v.name FROM jsonb_to_recordset(said) AS v (name text));
    IF for_identity IS NULL THEN
        UPDATE gateways_feature x SET missing_since = moment
        WHERE x.assignment_id = for_assignment AND x.kind = of_kind AND x.missing_since IS NULL
            AND x.name <> ALL(names);
    ELSE
        DELETE FROM gateways_feature_identities fi USING gateways_feature x
        WHERE fi.identity_id = for_identity AND fi.feature_id = x.id AND x.assignment_id = for_assignment
            AND x.kind = of_kind AND x.name <> ALL(names);
        UPDATE gateways_feature x SET missing_since = moment
        WHERE x.assignment_id = for_assignment AND x.kind = of_kind AND x.missing_since IS NULL
            AND NOT EXISTS (SELECT FROM gateways_feature_identities fi WHERE fi.feature_id = x.id);
    END IF;
END $$
"""
DROP_LEARN = "DROP FUNCTION gateways_learn(uuid, uuid, text, jsonb, text)"

# Sets `effect` to the effect that an administrator stated, otherwise to the effect that `Effect.of` would return. Hints
# other than true and false are ignored.
SET_EFFECT = """
CREATE FUNCTION gateways_work_out_effect() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.effect := CASE
        WHEN NEW.said_effect <> '' THEN NEW.said_effect
        WHEN NEW.annotations->'readOnlyHint' = 'true'::jsonb THEN 'read_only'
        WHEN NEW.annotations->'destructiveHint' = 'true'::jsonb THEN 'destructive'
        WHEN NEW.annotations->'readOnlyHint' = 'false'::jsonb THEN 'writes'
        ELSE 'unknown'
    END;
    RETURN NEW;
END $$;
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION gateways_work_out_effect() SET search_path = %I, pg_temp', current_schema());
END $$;
CREATE TRIGGER work_out_effect BEFORE INSERT OR UPDATE OF annotations, effect, said_effect ON gateways_feature
    FOR EACH ROW EXECUTE FUNCTION gateways_work_out_effect();
"""
DROP_EFFECT = """
DROP TRIGGER work_out_effect ON gateways_feature;
DROP FUNCTION gateways_work_out_effect();
"""


class Migration(migrations.Migration):
    dependencies = [("gateways", "0001_initial"), ("auditlog", "0001_initial")]

    operations = [
        migrations.RunSQL(CHECK_SHARED_IDENTITY, DROP_CHECK),
        migrations.RunSQL(LEARN, DROP_LEARN),
        migrations.RunSQL(SET_EFFECT, DROP_EFFECT),
    ]
