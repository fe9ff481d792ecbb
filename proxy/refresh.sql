-- Renewal of identities from a sign-in. Only the process with the lease asks the issuer; others poll for the tokens it
-- stores. Rows are locked for one statement only, never while the issuer is asked, so that an administrator who
-- disables or revokes an identity does not wait.

-- name: take
-- The last column is `Server.entered` of servers/models.py in SQL.
WITH due AS (
    SELECT i.id, i.server_id FROM servers_identity i JOIN upstream_oauth_grant g ON g.identity_id = i.id
    WHERE i.id = %(identity)s::uuid
        AND i.revoked_at IS NULL AND i.enabled AND i.unconfirmed_since IS NULL AND i.sign_in_needed_since IS NULL
        AND encode(i.secret_ciphertext, 'escape') = %(ciphertext)s::text
        AND g.refresh_ciphertext IS NOT NULL
        AND (g.leased_until IS NULL OR g.leased_until <= statement_timestamp())
        AND (g.retry_at IS NULL OR g.retry_at <= statement_timestamp())
    FOR NO KEY UPDATE OF i, g
)
UPDATE upstream_oauth_grant g SET lease = %(lease)s::uuid, leased_until = statement_timestamp() + interval '40 seconds'
FROM due, upstream_oauth_clientregistration r, servers_server s
WHERE g.identity_id = due.id AND r.id = g.registration_id AND s.id = due.server_id
RETURNING g.token_endpoint, encode(g.refresh_ciphertext, 'escape'), g.resource, g.scope, r.client_id,
    encode(r.secret_ciphertext, 'escape'), r.auth_method, r.other_auth_method, r.id::text, g.revocation_endpoint,
    g.private, ARRAY[s.url, s.authorization_endpoint, s.token_endpoint, s.revocation_endpoint]::text[]

-- name: look
SELECT encode(i.secret_ciphertext, 'escape'),
    CASE
        WHEN i.revoked_at IS NOT NULL THEN 'identity_missing'
        WHEN NOT i.enabled AND i.disabled_by_id = i.owner_id THEN 'identity_off'
        WHEN NOT i.enabled THEN 'identity_disabled'
        WHEN i.unconfirmed_since IS NOT NULL THEN 'identity_unconfirmed'
        WHEN i.sign_in_needed_since IS NOT NULL THEN 'identity_sign_in'
        ELSE ''
    END,
    g.refresh_ciphertext IS NOT NULL,
    coalesce(g.leased_until > statement_timestamp(), false)
FROM servers_identity i JOIN upstream_oauth_grant g ON g.identity_id = i.id
WHERE i.id = %(identity)s::uuid

-- name: store
WITH mine AS (
    SELECT i.id FROM servers_identity i JOIN upstream_oauth_grant g ON g.identity_id = i.id
    WHERE i.id = %(identity)s::uuid AND g.lease = %(lease)s::uuid AND i.revoked_at IS NULL
    FOR NO KEY UPDATE OF i, g
), access AS (
    UPDATE servers_identity i SET
        secret_ciphertext = %(access)s::bytea, key_id = %(key)s::text, last_error = '',
        expires_at = statement_timestamp() + make_interval(secs => %(expires_in)s::float8),
        renew_at = statement_timestamp() + make_interval(secs => %(renew_in)s::float8)
    FROM mine WHERE i.id = mine.id
)
UPDATE upstream_oauth_grant g SET
    refresh_ciphertext = coalesce(%(refresh)s::bytea, g.refresh_ciphertext),
    key_id = CASE WHEN %(refresh)s::bytea IS NULL THEN g.key_id ELSE %(key)s::text END,
    scope = CASE %(scope)s::text WHEN '' THEN g.scope ELSE %(scope)s::text END,
    lease = NULL, leased_until = NULL, failures = 0, retry_at = NULL, refreshed_at = statement_timestamp()
FROM mine WHERE g.identity_id = mine.id
RETURNING true

-- name: other_auth_method
-- The issuer refused one client authentication method and accepted the other.
UPDATE upstream_oauth_clientregistration SET auth_method = other_auth_method, other_auth_method = ''
WHERE id = %(registration)s::uuid AND auth_method = %(refused)s::text AND other_auth_method <> ''
RETURNING true

-- name: wait
-- The issuer gave no clear answer: retry after a growing delay, a minute at most.
UPDATE upstream_oauth_grant SET
    lease = NULL, leased_until = NULL, failures = least(failures + 1, 1000),
    refusals = CASE WHEN NOT %(is_refusal)s::boolean THEN 0 WHEN failures = 0 THEN 1 ELSE least(refusals + 1, 1000) END,
    retry_at = statement_timestamp() + make_interval(secs => least(60, 2 ^ least(failures, 6)))
WHERE identity_id = %(identity)s::uuid AND lease = %(lease)s::uuid
RETURNING refusals

-- name: refused
WITH mine AS (
    SELECT i.id, g.registration_id FROM servers_identity i JOIN upstream_oauth_grant g ON g.identity_id = i.id
    WHERE i.id = %(identity)s::uuid AND i.revoked_at IS NULL AND i.sign_in_needed_since IS NULL
        AND encode(i.secret_ciphertext, 'escape') = %(ciphertext)s::text
        AND (g.lease = %(lease)s::uuid OR %(lease)s::uuid IS NULL AND g.lease IS NULL)
    FOR NO KEY UPDATE OF i, g
), known AS (
    UPDATE upstream_oauth_clientregistration r SET ended_at = statement_timestamp()
    FROM mine WHERE r.id = mine.registration_id AND r.kind = 'dynamic' AND r.ended_at IS NULL AND %(reason)s::text = 'client'
), grants AS (
    UPDATE upstream_oauth_grant g SET refresh_ciphertext = NULL, lease = NULL, leased_until = NULL
    FROM mine WHERE g.identity_id = mine.id
), identities AS (
    UPDATE servers_identity i SET
        sign_in_needed_since = statement_timestamp(), sign_in_reason = %(reason)s::text, last_error = %(detail)s::text
    FROM mine WHERE i.id = mine.id
    RETURNING i.id, i.label, i.account, i.issuer, i.server_id, i.owner_id
)
INSERT INTO auditlog_event (
    uid, created_at, actor_id, actor_email, via, ip, action, target_type, target_id, target_label, changes,
    correlation_id
)
SELECT gen_random_uuid(), statement_timestamp(), NULL, 'system', 'system', NULL, 'identity.sign_in_needed', 'identity',
    i.id::text, left(i.label || ' (' || s.name || ')', 200),
    jsonb_build_object(
        'account', jsonb_build_array(NULL, i.account), 'issuer', jsonb_build_array(NULL, i.issuer),
        'reason', jsonb_build_array(NULL, %(reason)s::text)
    ) || jsonb_strip_nulls(jsonb_build_object('owner', u.email)), gen_random_uuid()
FROM identities i JOIN servers_server s ON s.id = i.server_id LEFT JOIN accounts_user u ON u.id = i.owner_id
RETURNING true

-- name: more_scope
WITH wider AS (
    UPDATE upstream_oauth_grant g SET wanted_scope = %(scope)s::text
    WHERE g.identity_id = %(identity)s::uuid AND g.wanted_scope <> %(scope)s::text
    RETURNING g.identity_id
)
UPDATE servers_identity i SET sign_in_reason = 'scope'
FROM wider WHERE i.id = wider.identity_id AND i.sign_in_needed_since IS NULL
