from collections.abc import Iterator

from django.db import migrations

# What decides whether somebody may call, by table. A change of any of it tells `cut`, once a transaction: the workers
# then decide anew about all that is under way. What calls themselves write (times of use, health) is not among it.
#
# The type of a column that stands here can be changed only after its trigger is dropped; make it again afterwards.
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
    "gateways_gateway": ("enabled", "archived_at", "slug", "reach"),
    "accounts_user": ("is_active", "is_superuser", "role_id"),
    "servers_server": ("enabled", "archived_at"),
    "servers_identity": ("enabled", "revoked_at", "unconfirmed_since", "generation"),
    "gateways_assignment": ("enabled", "removed_at", "tool_policy", "identity_scheme", "shared_identity_id"),
}

# Rows that give access by being there.
GIVING = (
    "oauth2_provider_accesstoken",
    "gateways_gateway_teams",
    "accounts_team_users",
    "accounts_role_permissions",
    "gateways_gateway_shared_identities",
    "connections_connectionidentity",
    "tokens_tokenscope",
)

# Sessions are ended by their client, or by their age; what is under way in them ends too.
ENDED = ("proxy_session",)

FUNCTIONS = """
CREATE FUNCTION proxy_tell_cut() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gateway', 'cut ');
    RETURN NULL;
END $$;

-- What a gateway shows has changed: the gateways of the assignments that `changed` leads to are told.
CREATE FUNCTION proxy_tell_lists() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    row jsonb := to_jsonb(CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END);
BEGIN
    PERFORM pg_notify('gateway', 'lists ' || told.gateway_id) FROM (
        SELECT (row->>'gateway_id')::uuid AS gateway_id
            WHERE TG_TABLE_NAME IN ('gateways_assignment', 'gateways_gateway_shared_identities')
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

-- The same for what servers offer, which is written many rows at a time and mostly as it was before.
CREATE FUNCTION proxy_tell_features() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unsaid text[] := ARRAY['id', 'first_seen_at', 'last_seen_at', 'changed_at', 'updated_at'];
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id)
        FROM gateways_assignment a WHERE a.id IN (SELECT assignment_id FROM new_rows);
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id)
        FROM gateways_assignment a WHERE a.id IN (SELECT assignment_id FROM old_rows);
    ELSE
        PERFORM pg_notify('gateway', 'lists ' || a.gateway_id), pg_notify('gateway', 'cut ')
        FROM gateways_assignment a WHERE a.id IN (
            SELECT n.assignment_id FROM new_rows n JOIN old_rows o ON o.id = n.id
            WHERE to_jsonb(n) - unsaid IS DISTINCT FROM to_jsonb(o) - unsaid
        );
    END IF;
    RETURN NULL;
END $$;
"""

# The functions read tables where those are, whatever somebody put elsewhere under the same name.
PLACE = """
DO $$ DECLARE name text; BEGIN
    FOREACH name IN ARRAY ARRAY['proxy_tell_cut', 'proxy_tell_lists', 'proxy_tell_features'] LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END $$;
"""

LISTED = {
    "gateways_assignment": ("enabled", "removed_at", "tool_policy", "identity_scheme", "shared_identity_id", "alias"),
    "servers_server": ("enabled", "archived_at"),
    "servers_identity": ("enabled", "revoked_at", "unconfirmed_since", "generation"),
}
LISTED_ROWS = {
    "gateways_assignment": "INSERT",
    "gateways_gateway_shared_identities": "INSERT OR DELETE",
    "connections_connectionidentity": "INSERT OR UPDATE OR DELETE",
}
FEATURES = "gateways_feature"


def triggers() -> Iterator[tuple[str, str, str]]:
    """Table, name and definition of each trigger."""
    for table, columns in DECIDING.items():
        yield table, "tell_cut", f"AFTER UPDATE ON {table} FOR EACH ROW {changed(columns)} EXECUTE {CUT}"
    for table in GIVING:
        yield table, "tell_cut_of_row", f"AFTER UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE {CUT}"
    for table in ENDED:
        yield table, "tell_cut_of_row", f"AFTER DELETE ON {table} FOR EACH ROW EXECUTE {CUT}"
    for table, columns in LISTED.items():
        yield table, "tell_lists", f"AFTER UPDATE ON {table} FOR EACH ROW {changed(columns)} EXECUTE {LISTS}"
    for table, events in LISTED_ROWS.items():
        yield table, "tell_lists_of_row", f"AFTER {events} ON {table} FOR EACH ROW EXECUTE {LISTS}"
    for event, rows in FEATURE_ROWS.items():
        definition = f"AFTER {event} ON {FEATURES} REFERENCING {rows} FOR EACH STATEMENT EXECUTE {OFFERED}"
        yield FEATURES, f"tell_features_{event.lower()}", definition


CUT, LISTS, OFFERED = (f"FUNCTION proxy_tell_{name}()" for name in ("cut", "lists", "features"))
FEATURE_ROWS = {
    "INSERT": "NEW TABLE AS new_rows",
    "UPDATE": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "DELETE": "OLD TABLE AS old_rows",
}


def changed(columns: tuple[str, ...]) -> str:
    old, new = (", ".join(f"{side}.{column}" for column in columns) for side in ("OLD", "NEW"))
    return f"WHEN (({old}) IS DISTINCT FROM ({new}))"


class Migration(migrations.Migration):
    """Triggers that tell the workers of changes which end access, and of those which change what is listed."""

    dependencies = [
        ("proxy", "0004_keep_sessions"),
        ("accounts", "0005_count_attempts"),
        ("connections", "0004_name_only_reasons_that_occur"),
        ("gateways", "0005_tools_become_features"),
        ("hosts", "0001_initial"),
        ("oauth", "0001_initial"),
        ("servers", "0004_drop_identity_expiry_and_refresh"),
        ("tokens", "0005_overlapping_and_collected_secrets"),
    ]

    operations = [
        migrations.RunSQL(
            FUNCTIONS + PLACE,
            "DROP FUNCTION proxy_tell_cut(), proxy_tell_lists(), proxy_tell_features()",
        ),
        *(
            migrations.RunSQL(f"CREATE TRIGGER {name} {definition}", f"DROP TRIGGER {name} ON {table}")
            for table, name, definition in triggers()
        ),
    ]
