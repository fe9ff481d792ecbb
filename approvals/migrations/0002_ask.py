"""The database function that the proxy calls when a rule holds a call.

If the call has an approved hold, the function marks it as used, and the call may run once. Otherwise, the function
returns another valid hold of the call. If there is none, it makes a new hold.

A trigger notifies the workers when the state of a hold changes, for example by a decision.
"""

from django.db import migrations

# The digest of the approved definition of a tool; empty for a tool that is not stored.
DEFINITION = """
CREATE FUNCTION approvals_definition(of_connection uuid, at_server uuid, of_tool text)
RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN coalesce((
        SELECT encode(sha256(convert_to(coalesce(x.approved::text, ''), 'UTF8')), 'hex')
        FROM connections_connection c
        JOIN gateways_assignment a ON a.gateway_id = c.gateway_id AND a.server_id = at_server AND a.removed_at IS NULL
        JOIN gateways_feature x ON x.assignment_id = a.id AND x.kind = 'tool' AND x.exposed_name = of_tool
        WHERE c.id = of_connection
        LIMIT 1
    ), '');
END $$;
"""

# Verdicts: `used` (the call may run, once), `waiting`, `denied` or `withdrawn` (the decision is still valid), `full`
# (the connection has too many waiting holds), `gone` (the rule was changed or removed, so the call must be decided
# again). A lock lets only one call of a connection run the function at a time. Otherwise there could be too many holds,
# or two waiting holds of the same call. Each statement sees what was committed before the statement began.
ASK = """
CREATE FUNCTION approvals_ask(
    of_connection uuid, at_server uuid, of_tool text, of_digest bytea, by_rule uuid, by_version int,
    sealed bytea, sealed_with text, in_call uuid, by_client text
) RETURNS TABLE (verdict text, hold uuid, ends double precision, sentence text, approvers text, patience int)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz;
    of_definition text := approvals_definition(of_connection, at_server, of_tool);
    found_id uuid;
    found_state text;
    found_sentence text := '';
    found_end timestamptz;
    decider text := 'a person who may decide on held calls';
    own_wait int;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('approvals ' || of_connection, 0));
    moment := clock_timestamp();
    SELECT c.hold_wait INTO own_wait FROM connections_connection c WHERE c.id = of_connection;
    SELECT CASE r.approvers WHEN 'team' THEN coalesce('the team ' || t.name, decider)
        WHEN 'person' THEN 'the person this agent acts for' ELSE decider END
    INTO decider
    FROM rules_rule r LEFT JOIN accounts_team t ON t.id = r.approver_team_id WHERE r.id = by_rule;

    -- What ended, and what another version of the rule or the tool asked for, waits no longer.
    UPDATE approvals_hold h SET state = 'expired'
    WHERE h.connection_id = of_connection AND h.state = 'waiting' AND h.ends_at <= moment;
    UPDATE approvals_hold h SET state = 'withdrawn', sentence = 'The rule or the tool was changed.'
    WHERE h.connection_id = of_connection AND h.server_id = at_server AND h.tool = of_tool AND h.digest = of_digest
        AND h.state = 'waiting'
        AND (h.rule_id, h.rule_version, h.definition) IS DISTINCT FROM (by_rule, by_version, of_definition);

    UPDATE approvals_hold h SET state = 'used', used_at = moment, run_call = in_call
    WHERE h.state = 'approved' AND h.id = (
        SELECT o.id FROM approvals_hold o
        WHERE o.connection_id = of_connection AND o.server_id = at_server AND o.tool = of_tool
            AND o.digest = of_digest AND o.rule_id = by_rule AND o.rule_version = by_version
            AND o.definition = of_definition AND o.state = 'approved' AND o.ends_at > moment
        ORDER BY o.decided_at LIMIT 1 FOR UPDATE
    )
    RETURNING h.id, h.ends_at INTO found_id, found_end;
    found_state := CASE WHEN found_id IS NOT NULL THEN 'used' END;

    IF found_id IS NULL THEN
        SELECT o.id, o.state, o.ends_at, o.sentence INTO found_id, found_state, found_end, found_sentence
        FROM approvals_hold o
        WHERE o.connection_id = of_connection AND o.server_id = at_server AND o.tool = of_tool
            AND o.digest = of_digest AND o.rule_id = by_rule AND o.rule_version = by_version
            AND o.definition = of_definition AND o.ends_at > moment AND (
                o.state IN ('waiting', 'denied') OR (o.state = 'withdrawn' AND o.decided_by_id IS NOT NULL)
            )
        ORDER BY o.asked_at DESC LIMIT 1;
    END IF;

    IF found_id IS NULL AND (
        SELECT count(*) FROM approvals_hold h WHERE h.connection_id = of_connection AND h.state = 'waiting'
    ) >= 20 THEN
        found_state := 'full';
        decider := '20';
    ELSIF found_id IS NULL THEN
        INSERT INTO approvals_hold (
            id, connection_id, user_id, server_id, tool, digest, definition, sealed_arguments, key_id,
            rule_id, rule_version, rule_name, approvers, team_id, somebody_else, seconds,
            asked_at, fallback_at, ends_at, state, sentence, asking_call, client
        )
        SELECT gen_random_uuid(), c.id, c.user_id, at_server, of_tool, of_digest, of_definition, sealed, sealed_with,
            r.id, by_version, r.name, r.approvers, r.approver_team_id, r.somebody_else, r.hold_minutes * 60,
            moment,
            moment + CASE
                WHEN r.approvers = 'team' AND NOT EXISTS (
                    SELECT FROM accounts_team_users tu JOIN accounts_user u ON u.id = tu.user_id
                    WHERE tu.team_id = r.approver_team_id AND u.is_active
                        AND NOT (r.somebody_else AND u.id = c.user_id)
                ) THEN interval '0'
                ELSE make_interval(secs => r.hold_minutes * 30)
            END,
            moment + make_interval(mins => r.hold_minutes), 'waiting', '', in_call, by_client
        FROM connections_connection c, rules_rule r
        WHERE c.id = of_connection AND r.id = by_rule AND r.revision = by_version
        RETURNING id, ends_at INTO found_id, found_end;
        found_state := CASE WHEN found_id IS NULL THEN 'gone' ELSE 'waiting' END;
    END IF;
    RETURN QUERY SELECT found_state, found_id, extract(epoch FROM found_end)::float8, coalesce(found_sentence, ''),
        coalesce(decider, ''), own_wait;
END $$;
"""

# Notify the workers when the state of a hold changes, so that calls that wait for the decision continue.
TELL = """
CREATE FUNCTION approvals_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gateway', 'hold ' || NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER tell_hold AFTER UPDATE OF state ON approvals_hold FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION approvals_tell();

-- A fixed search path: the functions read our tables, even if a session has others of the same names before them.
DO $$ DECLARE name text; BEGIN
    FOREACH name IN ARRAY ARRAY['approvals_definition', 'approvals_ask', 'approvals_tell'] LOOP
        EXECUTE format('ALTER FUNCTION %I SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END $$;
"""
DROP = """
DROP TRIGGER tell_hold ON approvals_hold;
DROP FUNCTION approvals_tell(), approvals_ask, approvals_definition;
"""


class Migration(migrations.Migration):
    dependencies = [("approvals", "0001_initial"), ("connections", "0003_hold_wait"), ("rules", "0003_approvers")]

    operations = [migrations.RunSQL(DEFINITION + ASK + TELL, DROP)]
