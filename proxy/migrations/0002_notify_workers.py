"""Triggers notify the workers of changes that end access, and of changes to what gateways list."""

from collections.abc import Iterator

from django.db import migrations

# Columns that decide whether a call is allowed, by table. A change sends `cut`, once per transaction, and the workers
# decide again about all running calls. Columns that calls themselves write (last use, health) are left out.
#
# PostgreSQL refuses to change the type of a column named here: drop its trigger first, then create it again.
DECIDING = {
    "tokens_token": (
        "digest",
        "previous_digest",
        "previous_ends_at",
        "generation",
        "revoked_at",
        "expires_at",
        "allowed_ips",
        "scope_all",
    ),
    "connections_connection": ("enabled", "revoked_at"),
    "hosts_host": ("enabled", "archived_at", "needs_approval", "approved_at"),
    "gateways_gateway": ("enabled", "archived_at", "slug", "reach", "hosts_allowed", "tools_given"),
    "accounts_user": ("is_active", "is_superuser", "role_id"),
    "servers_server": ("enabled", "archived_at"),
    "servers_identity": ("enabled", "revoked_at", "unconfirmed_since", "generation"),
    "gateways_assignment": ("enabled", "removed_at", "tool_policy", "identity_scheme", "shared_identity_id"),
    "gateways_toolset": ("likes", "effects", "archived_at"),
}
# Tables whose rows give access by existing.
GIVING = (
    "oauth2_provider_accesstoken",
    "gateways_gateway_teams",
    "accounts_team_users",
    "accounts_role_permissions",
    "gateways_gateway_shared_identities",
    "connections_connectionidentity",
    "tokens_tokenscope",
    "gateways_toolgrant",
    "gateways_toolset_members",
)
# Tables whose new rows may end access as well.
ENDING = ("connections_hostatgateway",)
# Columns and rows that decide what a gateway lists.
LISTED = {
    "gateways_assignment": ("enabled", "removed_at", "tool_policy", "identity_scheme", "shared_identity_id", "alias"),
    "servers_server": ("enabled", "archived_at"),
    "servers_identity": ("enabled", "revoked_at", "unconfirmed_since", "generation"),
    "gateways_gateway": ("tools_given",),
    "gateways_toolset": ("likes", "effects"),
}
LISTED_ROWS = {
    "gateways_assignment": "INSERT",
    "gateways_gateway_shared_identities": "INSERT OR DELETE",
    "connections_connectionidentity": "INSERT OR UPDATE OR DELETE",
    "connections_hostatgateway": "INSERT OR UPDATE OR DELETE",
    "gateways_toolgrant": "INSERT OR UPDATE OR DELETE",
    "gateways_toolset_members": "INSERT OR DELETE",
    "accounts_team_users": "INSERT OR DELETE",
}
FEATURE_ROWS = {
    "INSERT": "NEW TABLE AS new_rows",
    "UPDATE": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "DELETE": "OLD TABLE AS old_rows",
}

FUNCTIONS = """
CREATE FUNCTION proxy_tell_cut() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gateway', 'cut ');
    RETURN NULL;
END $$;

-- The end of a session ends the calls in it, and no others.
CREATE FUNCTION proxy_tell_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gateway', 'ended ' || OLD.id);
    RETURN NULL;
END $$;

-- Notifies of the gateways whose lists the changed row may affect.
CREATE FUNCTION proxy_tell_lists() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    row jsonb := to_jsonb(CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END);
BEGIN
    PERFORM pg_notify('gateway', 'lists ' || told.gateway_id) FROM (
        SELECT (row->>'gateway_id')::uuid AS gateway_id
            WHERE TG_TABLE_NAME IN (
                'gateways_assignment', 'gateways_gateway_shared_identities', 'gateways_toolset', 'gateways_toolgrant',
                'connections_hostatgateway'
            )
        UNION
        SELECT id FROM gateways_gateway WHERE TG_TABLE_NAME = 'gateways_gateway' AND id = (row->>'id')::uuid
        UNION
        SELECT gateway_id FROM gateways_toolset
            WHERE TG_TABLE_NAME = 'gateways_toolset_members' AND id = (row->>'toolset_id')::uuid
        UNION
        SELECT gateway_id FROM gateways_toolgrant
            WHERE TG_TABLE_NAME = 'accounts_team_users' AND team_id = (row->>'team_id')::uuid AND ended_at IS NULL
        UNION
        SELECT gateway_id FROM gateways_assignment
            WHERE TG_TABLE_NAME = 'servers_server' AND server_id = (row->>'id')::uuid AND removed_at IS NULL
        UNION
        SELECT gateway_id FROM gateways_assignment
            WHERE TG_TABLE_NAME = 'servers_identity' AND shared_identity_id = (row->>'id')::uuid
                AND removed_at IS NULL
        UNION
        SELECT a.gateway_id FROM connections_connectionidentity ci JOIN gateways_assignment a ON a.id = ci.assignment_id
            WHERE TG_TABLE_NAME = 'servers_identity' AND ci.identity_id = (row->>'id')::uuid
        UNION
        SELECT gateway_id FROM gateways_assignment
            WHERE TG_TABLE_NAME = 'connections_connectionidentity' AND id = (row->>'assignment_id')::uuid
    ) told;
    RETURN NULL;
END $$;

-- Notifies of the gateways and lists of changed features. Many rows are written at a time, most of them unchanged.
-- `effect` follows from the annotations, so a change of `effect` alone does not count.
CREATE FUNCTION proxy_tell_features() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unsaid text[] := ARRAY['id', 'first_seen_at', 'last_seen_at', 'changed_at', 'updated_at', 'effect'];
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id || ' ' || x.list)
        FROM (
            SELECT DISTINCT assignment_id,
                CASE kind WHEN 'tool' THEN 'tools' WHEN 'prompt' THEN 'prompts' ELSE 'resources' END AS list
            FROM new_rows
        ) x JOIN gateways_assignment a ON a.id = x.assignment_id;
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id || ' ' || x.list)
        FROM (
            SELECT DISTINCT assignment_id,
                CASE kind WHEN 'tool' THEN 'tools' WHEN 'prompt' THEN 'prompts' ELSE 'resources' END AS list
            FROM old_rows
        ) x JOIN gateways_assignment a ON a.id = x.assignment_id;
    ELSE
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id || ' ' || x.list), pg_notify('gateway', 'cut ')
        FROM (
            SELECT DISTINCT n.assignment_id,
                CASE n.kind WHEN 'tool' THEN 'tools' WHEN 'prompt' THEN 'prompts' ELSE 'resources' END AS list
            FROM new_rows n JOIN old_rows o ON o.id = n.id
            WHERE to_jsonb(n) - unsaid IS DISTINCT FROM to_jsonb(o) - unsaid
        ) x JOIN gateways_assignment a ON a.id = x.assignment_id;
    END IF;
    RETURN NULL;
END $$;

-- A fixed search path: the functions read our tables, even if a session has others of the same names before them.
DO $$ DECLARE name text; BEGIN
    FOREACH name IN ARRAY ARRAY['proxy_tell_cut', 'proxy_tell_ended', 'proxy_tell_lists', 'proxy_tell_features'] LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END $$;
"""
DROP = "DROP FUNCTION proxy_tell_cut(), proxy_tell_ended(), proxy_tell_lists(), proxy_tell_features()"


def triggers() -> Iterator[tuple[str, str, str]]:
    """Yield the table, name and definition of each trigger."""
    cut, lists, features = (f"EXECUTE FUNCTION proxy_tell_{name}()" for name in ("cut", "lists", "features"))
    for table, columns in DECIDING.items():
        yield table, "tell_cut", f"AFTER UPDATE ON {table} FOR EACH ROW {changed(columns)} {cut}"
    for table in GIVING:
        yield table, "tell_cut_of_row", f"AFTER UPDATE OR DELETE ON {table} FOR EACH ROW {cut}"
    for table in ENDING:
        yield table, "tell_cut_of_row", f"AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW {cut}"
    for table, columns in LISTED.items():
        yield table, "tell_lists", f"AFTER UPDATE ON {table} FOR EACH ROW {changed(columns)} {lists}"
    for table, events in LISTED_ROWS.items():
        yield table, "tell_lists_of_row", f"AFTER {events} ON {table} FOR EACH ROW {lists}"
    for event, rows in FEATURE_ROWS.items():
        definition = f"AFTER {event} ON gateways_feature REFERENCING {rows} FOR EACH STATEMENT {features}"
        yield "gateways_feature", f"tell_features_{event.lower()}", definition
    yield "proxy_session", "tell_ended", "AFTER DELETE ON proxy_session FOR EACH ROW EXECUTE FUNCTION proxy_tell_ended()"


def changed(columns: tuple[str, ...]) -> str:
    old, new = (", ".join(f"{side}.{column}" for column in columns) for side in ("OLD", "NEW"))
    return f"WHEN (({old}) IS DISTINCT FROM ({new}))"


class Migration(migrations.Migration):
    dependencies = [
        ("proxy", "0001_initial"),
        ("accounts", "0001_initial"),
        ("connections", "0001_initial"),
        ("gateways", "0002_learn_lists"),
        ("hosts", "0001_initial"),
        ("oauth", "0001_initial"),
        ("servers", "0001_initial"),
        ("tokens", "0001_initial"),
    ]

    operations = [
        migrations.RunSQL(FUNCTIONS, DROP),
        *(
            migrations.RunSQL(f"CREATE TRIGGER {name} {definition}", f"DROP TRIGGER {name} ON {table}")
            for table, name, definition in triggers()
        ),
    ]
