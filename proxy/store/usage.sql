-- One row per object that was used. Rows are locked in the order of their ids, so that workers do not deadlock; rows
-- locked by another transaction are skipped; the latest time wins.

-- name: tokens
-- A token may have two valid secrets, distinguished by prefix; `other` is the one used earlier. The previous secret may
-- end with the first use of the present one. A token that waits to be collected has no present secret: its prefix is
-- that of the previous secret. Returns the tokens whose previous secret should have ended, but whose row was locked.
WITH written AS (
UPDATE tokens_token t SET
    last_used_at = greatest(t.last_used_at, m.at),
    last_used_ip = CASE WHEN t.last_used_at >= m.at THEN t.last_used_ip ELSE m.ip END,
    secret_last_used_at = greatest(
        t.secret_last_used_at,
        CASE WHEN t.digest IS NOT NULL THEN CASE t.prefix WHEN m.prefix THEN m.at WHEN m.other THEN m.other_at END END
    ),
    previous_last_used_at = greatest(
        t.previous_last_used_at, CASE t.previous_prefix WHEN m.prefix THEN m.at WHEN m.other THEN m.other_at END
    ),
    previous_ends_at = CASE WHEN t.previous_until_used AND t.digest IS NOT NULL AND t.prefix IN (m.prefix, m.other)
        THEN least(t.previous_ends_at, statement_timestamp()) ELSE t.previous_ends_at END
FROM (
    SELECT r.id, v.at, v.ip, v.prefix, v.other, v.other_at FROM tokens_token r
    JOIN unnest(
        %(ids)s::uuid[], %(at)s::timestamptz[], %(ip)s::inet[], %(prefix)s::text[],
        %(other)s::text[], %(other_at)s::timestamptz[]
    ) AS v (id, at, ip, prefix, other, other_at) USING (id)
    WHERE r.last_used_at IS NULL OR r.last_used_at < v.at OR r.previous_digest IS NOT NULL
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
) m WHERE t.id = m.id
RETURNING t.id
)
SELECT t.id::text FROM tokens_token t
JOIN unnest(%(ids)s::uuid[], %(prefix)s::text[], %(other)s::text[]) AS v (id, prefix, other) USING (id)
WHERE t.previous_until_used AND t.digest IS NOT NULL AND t.prefix IN (v.prefix, v.other)
AND t.previous_ends_at > statement_timestamp() AND NOT EXISTS (SELECT FROM written WHERE written.id = t.id)

-- name: connections
UPDATE connections_connection t SET last_used_at = m.at
FROM (
    SELECT r.id, v.at FROM connections_connection r
    JOIN unnest(%(ids)s::uuid[], %(at)s::timestamptz[]) AS v (id, at) USING (id)
    WHERE r.last_used_at IS NULL OR r.last_used_at < v.at
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
) m WHERE t.id = m.id

-- name: sessions
UPDATE proxy_session t SET last_used_at = m.at
FROM (
    SELECT r.id, v.at FROM proxy_session r
    JOIN unnest(%(ids)s::uuid[], %(at)s::timestamptz[]) AS v (id, at) USING (id)
    WHERE r.last_used_at < v.at
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
) m WHERE t.id = m.id

-- name: upstream_sessions
UPDATE proxy_upstreamsession t SET last_used_at = m.at
FROM (
    SELECT r.id, v.at FROM proxy_upstreamsession r
    JOIN unnest(%(ids)s::uuid[], %(at)s::timestamptz[]) AS v (id, at) USING (id)
    WHERE r.last_used_at < v.at
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
) m WHERE t.id = m.id

-- name: server_infos
-- Servers introduce themselves with each new session. Only changes of capabilities and instructions are written.
-- Capabilities are stored for each era.
-- Instructions of 2026-07-28 are not replaced by those of sessions.
INSERT INTO proxy_serverinfo AS t
    (server_id, told_to, version, capabilities, modern_capabilities, instructions, changed_at)
SELECT v.server_id, v.told_to, v.version, v.capabilities, v.modern_capabilities, v.instructions, statement_timestamp()
FROM unnest(
    %(servers)s::uuid[], %(told_to)s::uuid[], %(versions)s::text[], %(capabilities)s::jsonb[],
    %(modern_capabilities)s::jsonb[], %(instructions)s::text[]
) AS v (server_id, told_to, version, capabilities, modern_capabilities, instructions)
ORDER BY v.server_id, v.told_to
ON CONFLICT (server_id, told_to) DO UPDATE SET
    version = excluded.version,
    capabilities = coalesce(excluded.capabilities, t.capabilities),
    modern_capabilities = coalesce(excluded.modern_capabilities, t.modern_capabilities),
    instructions = CASE
        WHEN excluded.modern_capabilities IS NULL AND t.modern_capabilities IS NOT NULL THEN t.instructions
        ELSE excluded.instructions
    END,
    changed_at = excluded.changed_at
WHERE (t.capabilities, t.modern_capabilities) IS DISTINCT FROM (
    coalesce(excluded.capabilities, t.capabilities), coalesce(excluded.modern_capabilities, t.modern_capabilities)
) OR t.instructions <> excluded.instructions AND NOT (
    excluded.modern_capabilities IS NULL AND t.modern_capabilities IS NOT NULL
)

-- name: hosts
UPDATE hosts_host t SET last_seen_at = m.at, first_seen_at = coalesce(t.first_seen_at, m.at)
FROM (
    SELECT r.id, v.at FROM hosts_host r
    JOIN unnest(%(ids)s::uuid[], %(at)s::timestamptz[]) AS v (id, at) USING (id)
    WHERE r.last_seen_at IS NULL OR r.last_seen_at < v.at
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
) m WHERE t.id = m.id

-- name: identities
UPDATE servers_identity t SET last_used_at = m.at, last_error = m.error
FROM (
    SELECT r.id, v.at, v.error FROM servers_identity r
    JOIN unnest(%(ids)s::uuid[], %(at)s::timestamptz[], %(error)s::text[]) AS v (id, at, error) USING (id)
    WHERE r.last_used_at IS NULL OR r.last_used_at < v.at
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
) m WHERE t.id = m.id

-- name: health
UPDATE servers_server t SET health = m.health, health_error = m.error, health_checked_at = m.at
FROM (
    SELECT r.id, v.at, v.health, v.error FROM servers_server r
    JOIN unnest(%(ids)s::uuid[], %(at)s::timestamptz[], %(health)s::text[], %(error)s::text[])
        AS v (id, at, health, error) USING (id)
    WHERE r.health_checked_at IS NULL OR r.health_checked_at < v.at
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
) m WHERE t.id = m.id

-- name: unknown_tokens
INSERT INTO auditlog_event (
    uid, created_at, actor_id, actor_email, via, ip, action, target_type, target_id, target_label, changes,
    correlation_id
)
SELECT gen_random_uuid(), statement_timestamp(), NULL, '', 'bearer', host(v.ip)::inet, 'proxy.unknown_tokens_refused',
    -- An IPv6 host may call from any address of its /64, so the event names the /64.
    'address', '', coalesce(CASE family(v.ip) WHEN 6 THEN v.ip::text ELSE host(v.ip) END, 'many addresses'),
    jsonb_build_object('requests', jsonb_build_array(NULL, v.requests)), gen_random_uuid()
FROM unnest(%(ip)s::inet[], %(requests)s::int[]) AS v (ip, requests)
