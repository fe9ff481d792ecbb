-- Replaces the token by a host, a gateway and a person, with their live connection or, if they have none, a new one.
-- Like a new token, it reaches every server.
--
-- $10, $11, $12  host, gateway, user
CROSS JOIN (
    SELECT NULL::uuid AS id, '' AS name, '' AS prefix, NULL::timestamptz AS revoked_at, NULL::timestamptz AS expires_at,
        NULL::jsonb AS allowed_ips, true AS scope_all, false AS by_oauth, false AS stale, NULL::integer AS calls_per_minute
) t
CROSS JOIN LATERAL (
    SELECT coalesce(x.id, '00000000-0000-0000-0000-000000000000') AS id, x.revoked_at, coalesce(x.enabled, true) AS enabled,
        $10::uuid AS host_id, $11::uuid AS gateway_id, $12::uuid AS user_id
    FROM (SELECT) one
    LEFT JOIN connections_connection x ON x.host_id = $10::uuid AND x.gateway_id = $11::uuid AND x.user_id = $12::uuid
        AND x.revoked_at IS NULL
) c
