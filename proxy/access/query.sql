-- The data for the decision about each request in a batch. Equal requests share one query.
--
-- Returns one row for each query whose token is known: an AccessRow, with AssignedServers and FeatureRows, whose fields
-- have the names of the columns. Every switch is read at each execution; nothing is cached. Expiry is compared with
-- `statement_timestamp()`, so that all workers agree. `OFFSET 0` fixes the join order: from the token along its keys,
-- one index look-up each. Otherwise the planner chooses an order by table sizes that may be outdated. Columns are
-- selected by name, because each further column of a table costs time in every execution.
--
-- The parts from `/* not for calls */` to `/* end */` are removed if all requests of a batch have API access tokens and
-- name a tool or prompt, or need no server. Most batches are like this, and PostgreSQL sets up each part of a
-- statement again for each execution: without these parts it takes a third less time.
-- The part from `/* token */` to `/* end token */` finds the token and its connection. `query_of_triple.sql` replaces
-- it for decisions about a host, a gateway and a person without a token.
--
-- $1 n         number of the query; has several rows while keys are rotated
-- $2 digest    digest of the API access token, NULL for other tokens
-- $3 checksum  checksum of the OAuth access token, NULL for other tokens
-- $4 slug      gateway in the URL
-- $5 servers   servers to return (ServersNeeded): 0 none, 1 all, 2 those that may have the feature `name`,
--              3 all, with their introductions instead of their features,
--              4 all, with the feature whose own name at its server is `name`
-- $6 name      exposed name of the tool or prompt; for a resource, the URIs its server may use for it, one per line
-- $7 kind      kind of the feature: tool, prompt, resource, template; or instructions, which leave out servers of
--              which the person and the app or agent may use nothing
-- $8 session   digest of the session id in the request, NULL for none
-- $9 declared  client capabilities that servers are sent, for a request without a session
SELECT
    q.n,
    t.id::text AS token_id,
    t.name AS token_name,
    t.prefix AS token_prefix,
    t.by_oauth,
    t.revoked_at IS NOT NULL AS token_revoked,
    t.stale AS token_stale,
    coalesce(t.expires_at <= statement_timestamp(), false) AS token_expired,
    t.allowed_ips::text AS allowed_ips,
    c.id::text AS connection_id,
    c.revoked_at IS NOT NULL AS connection_revoked,
    c.enabled AS connection_enabled,
    g.id::text AS gateway_id,
    g.name AS gateway_name,
    CASE WHEN q.servers IN (0, 3) THEN g.description ELSE '' END AS gateway_description,
    g.slug = q.slug AND g.archived_at IS NULL AS gateway_matches,
    CASE WHEN g.slug = q.slug AND g.archived_at IS NULL THEN true ELSE EXISTS (
        SELECT FROM gateways_gateway WHERE slug = q.slug AND archived_at IS NULL OFFSET 0
    ) END AS gateway_exists,
    g.enabled AS gateway_enabled,
    h.id::text AS host_id,
    h.name AS host_name,
    h.enabled AND h.archived_at IS NULL AS host_enabled,
    h.needs_approval AND h.approved_at IS NULL AS host_pending,
    u.id::text AS user_id,
    u.email AS user_email,
    u.is_active AS user_active,
    -- A role can exclude its people from the use of gateways.
    (SELECT uses_gateways FROM accounts_role WHERE id = u.role_id) IS NOT FALSE AND (g.reach = 'everyone'
    OR g.reach = 'teams' AND EXISTS (
        SELECT FROM gateways_gateway_teams gt
        JOIN accounts_team_users tu ON tu.team_id = gt.team_id
        WHERE gt.gateway_id = g.id AND tu.user_id = u.id OFFSET 0
    )
    OR u.is_superuser
    OR EXISTS (
        SELECT FROM accounts_role_permissions rp
        JOIN auth_permission p ON p.id = rp.permission_id
        JOIN django_content_type ct ON ct.id = p.content_type_id
        WHERE rp.role_id = u.role_id AND p.codename = 'view_gateway' AND ct.app_label = 'gateways' OFFSET 0
    )
    OR g.reach = 'teams' AND gateways_opened_to(g.id, u.id)) AS reaches,
    coalesce(hg.allowed, g.hosts_allowed = 'all') AS host_allowed,
    CASE WHEN q.servers > 0 AND g.slug = q.slug THEN (
        SELECT json_agg(
            json_build_object(
                'id', a.id,
                'alias', a.alias,
                'enabled', a.enabled,
                'scheme', a.identity_scheme,
                'policy', a.tool_policy,
                'in_scope', t.scope_all OR EXISTS (
                    SELECT FROM tokens_tokenscope ts WHERE ts.token_id = t.id AND ts.assignment_id = a.id OFFSET 0
                ),
                'server_id', s.id,
                'server_name', s.name,
                'url', s.url,
                'server_enabled', s.enabled,
                'auth_type', s.auth_type,
                'header_name', s.header_name,
                'timeout_s', s.timeout_seconds,
                'max_concurrent', s.max_concurrent,
                'eras', s.protocol_era,
                'identity_id', i.id,
                'identity_label', i.label,
                'identity_enabled', i.enabled,
                'ciphertext', encode(i.secret_ciphertext, 'escape'),
                'features', CASE q.servers WHEN 3 THEN NULL /* not for calls */ WHEN 1 THEN (
                    -- Features that clients can list: approved, enabled, and offered to this identity.
                    SELECT json_agg(
                        json_build_array(  -- A ListedFeature, without names of members: a list may have thousands.
                            x.exposed_name, coalesce(x.shown, x.approved),
                            CASE WHEN strpos(x.name, '.') > 0 AND q.kind IN ('tool', 'prompt') THEN x.name END,
                            CASE WHEN x.said_title <> '' OR x.said_description <> '' THEN json_strip_nulls(
                                json_build_object(
                                    'title', nullif(x.said_title, ''), 'description', nullif(x.said_description, '')
                                )
                            ) END
                        ) ORDER BY x.position, x.name
                    )
                    FROM gateways_feature x
                    WHERE x.assignment_id = a.id AND x.kind = q.kind AND x.enabled
                        AND a.tool_policy IN ('allow_all', 'selected')
                        AND x.state IN ('approved', 'held') AND x.approved <> ''
                        AND CASE WHEN a.identity_scheme = 'per_user' AND i.id IS NOT NULL THEN EXISTS (
                            SELECT FROM gateways_feature_identities
                            WHERE feature_id = x.id AND identity_id = i.id OFFSET 0
                        ) ELSE x.missing_since IS NULL END
                        AND CASE WHEN g.tools_given = 'all' AND hg.tool_set_id IS NULL THEN true ELSE x.id IN (
                            SELECT unnest(gateways_given(
                                CASE WHEN g.tools_given <> 'all' THEN g.id END, ARRAY[u.id], hg.tool_set_id, a.id, NULL
                            ))
                        ) END
                ) /* end */ ELSE (
                    SELECT json_agg(json_build_object(
                        'name', x.name,
                        'exposed_name', x.exposed_name,
                        'enabled', x.enabled,
                        'schema', CASE
                            WHEN s.protocol_era <> 'session' AND strpos(x.input_schema::text, '"x-mcp-header"') > 0
                            THEN x.input_schema
                        END,
                        'state', x.state,
                        'approved', CASE WHEN x.state = 'held' AND g.changed_definitions = 'hold' THEN x.approved END,
                        'offered', CASE WHEN x.state = 'held' AND g.changed_definitions = 'hold' THEN x.offered END,
                        'kind', x.kind,
                        'claims', CASE WHEN r.rules IS NOT NULL THEN (
                            SELECT json_build_array(coalesce(nullif(said_title, ''), title), said_effect, annotations)
                            FROM gateways_feature WHERE id = x.id
                        ) END,
                        'granted', CASE WHEN g.tools_given = 'all' AND hg.tool_set_id IS NULL THEN true
                            /* not for calls */
                            -- All at once: a server may have thousands of templates.
                            WHEN q.kind = 'resource' THEN x.id IN (SELECT unnest(gateways_given(
                                CASE WHEN g.tools_given <> 'all' THEN g.id END, ARRAY[u.id], hg.tool_set_id, a.id, NULL
                            )))
                            /* end */
                            ELSE x.id = ANY (gateways_given(
                                CASE WHEN g.tools_given <> 'all' THEN g.id END, ARRAY[u.id], hg.tool_set_id, a.id, x.id
                            ))
                        END
                    ))
                    FROM (
                        SELECT id, name, exposed_name, enabled, input_schema, state, approved, offered, kind FROM gateways_feature
                        WHERE q.kind <> 'resource' AND assignment_id = a.id AND kind = q.kind
                            AND name = CASE
                                WHEN a.alias = '' /* not for calls */ OR q.servers = 4 /* end */ THEN q.name
                                ELSE substr(q.name, length(a.alias) + 3)
                            END
                            /* not for calls */ AND (q.servers <> 4 OR missing_since IS NULL) /* end */
                        UNION ALL
                        -- Shortened names end like this.
                        SELECT id, name, exposed_name, enabled, input_schema, state, approved, offered, kind FROM gateways_feature
                        WHERE q.name ~ '_[0-9a-f]{6}$' AND q.kind <> 'resource'
                            AND assignment_id = a.id AND kind = q.kind AND exposed_name = q.name
                        /* not for calls */
                        UNION ALL
                        SELECT id, name, exposed_name, enabled, NULL, state, approved, offered, kind FROM gateways_feature
                        WHERE q.kind = 'resource' AND assignment_id = a.id AND kind = 'resource'
                            AND name = ANY (string_to_array(q.name, E'\n'))
                        UNION ALL
                        -- A template may match a resource that is not listed.
                        SELECT id, name, exposed_name, enabled, NULL, state, approved, offered, kind FROM gateways_feature
                        WHERE q.kind = 'resource' AND assignment_id = a.id AND kind = 'template'
                        /* end */
                    ) x
                ) END,
                -- A shared identity may be used only on gateways that currently allow it.
                'identity_allowed', a.identity_scheme <> 'shared' OR EXISTS (
                    SELECT FROM gateways_gateway_shared_identities
                    WHERE gateway_id = g.id AND identity_id = a.shared_identity_id OFFSET 0
                ),
                'identity_unconfirmed', i.unconfirmed_since IS NOT NULL,
                'upstream_key', k.key,
                'upstream_session', CASE WHEN p.id IS NOT NULL THEN
                    json_build_object(
                        'row', p.id, 'sealed_id', encode(p.sealed_id, 'escape'), 'version', p.version,
                        'log_level', p.log_level
                    )
                END,
                'introduction', CASE WHEN false THEN NULL /* not for calls */ WHEN q.servers = 3 THEN json_build_object(
                    -- Capabilities as sent to this identity, otherwise to another one; instructions only to this one.
                    'capabilities', (
                        SELECT capabilities FROM proxy_serverinfo WHERE server_id = s.id AND capabilities IS NOT NULL
                        ORDER BY told_to <> k.told_to LIMIT 1
                    ),
                    'instructions', (SELECT instructions FROM proxy_serverinfo WHERE server_id = s.id AND told_to = k.told_to),
                    'modern_capabilities', (
                        SELECT modern_capabilities FROM proxy_serverinfo
                        WHERE server_id = s.id AND modern_capabilities IS NOT NULL
                        ORDER BY told_to <> k.told_to LIMIT 1
                    ),
                    -- Looked up only for the instructions, because streams read introductions often.
                    'is_given', CASE
                        WHEN q.kind <> 'instructions' OR g.tools_given = 'all' AND hg.tool_set_id IS NULL THEN true
                        ELSE gateways_given(
                            CASE WHEN g.tools_given <> 'all' THEN g.id END, ARRAY[u.id], hg.tool_set_id, a.id, NULL
                        ) <> '{}'
                    END
                ) /* end */ END,
                -- Looked up only if the session has a log level. A server may log while its capabilities are unknown.
                'logs', coalesce(ses.log_level, '') <> '' AND NOT EXISTS (
                    SELECT FROM proxy_serverinfo WHERE server_id = s.id AND NOT capabilities ? 'logging'
                ),
                'total_s', s.total_seconds,
                'listing', CASE WHEN false THEN NULL /* not for calls */ WHEN q.servers = 1 THEN (
                    SELECT json_build_object(
                        'age', extract(epoch FROM statement_timestamp() - l.asked_at),
                        'is_known', l.learnt_at IS NOT NULL, 'error', l.error, 'ttl_ms', l.ttl_ms
                    )
                    FROM gateways_listing l
                    WHERE l.assignment_id = a.id AND l.kind = q.kind
                        AND l.identity_id IS NOT DISTINCT FROM CASE a.identity_scheme WHEN 'per_user' THEN i.id END
                ) /* end */ END,
                'lists_live', s.lists_live,
                'identity_off_by_owner', i.disabled_by_id IS NOT NULL AND i.disabled_by_id = i.owner_id,
                -- For identities from a sign-in: whether a person must sign in again and, once a renewal is due, the
                -- seconds until expiry.
                'sign_in', CASE WHEN i.issuer <> '' THEN json_build_object(
                    'is_needed', i.sign_in_needed_since IS NOT NULL,
                    'seconds_left', CASE WHEN i.renew_at <= statement_timestamp() THEN
                        extract(epoch FROM i.expires_at - statement_timestamp())
                    END
                ) END,
                'private', s.private IS NOT FALSE,
                'restricted', g.tools_given <> 'all' OR hg.tool_set_id IS NOT NULL
            ) ORDER BY a.alias
        )
        FROM gateways_assignment a
        CROSS JOIN LATERAL (
            SELECT id, name, url, enabled, auth_type, header_name, timeout_seconds, total_seconds, max_concurrent,
                protocol_era, lists_live, private
            FROM servers_server WHERE id = a.server_id AND archived_at IS NULL OFFSET 0
        ) s
        LEFT JOIN LATERAL (
            SELECT id, server_id, owner_id, label, enabled, secret_ciphertext, generation, revoked_at,
                unconfirmed_since, disabled_by_id, issuer, sign_in_needed_since, renew_at, expires_at
            FROM servers_identity
            WHERE id = CASE a.identity_scheme
                    WHEN 'shared' THEN a.shared_identity_id
                    WHEN 'per_user' THEN (
                        SELECT identity_id FROM connections_connectionidentity
                        WHERE connection_id = c.id AND assignment_id = a.id
                    )
                END
            OFFSET 0
        ) i ON i.server_id = s.id
            AND i.revoked_at IS NULL
            -- A shared identity has no owner; any other belongs to the connection's user.
            AND i.owner_id IS NOT DISTINCT FROM CASE a.identity_scheme WHEN 'per_user' THEN u.id END
        CROSS JOIN LATERAL (
            -- A session at a server is reused only for the same identity, address and client capabilities. The parts of
            -- the key are separated by spaces; sessions.py reads the first five.
            SELECT coalesce(i.id, s.id) AS told_to, concat_ws(
                ' ', coalesce(i.id, s.id), coalesce(i.generation, 0), s.auth_type, s.header_name, md5(s.url),
                coalesce(ses.declared, q.declared)
            ) AS key OFFSET 0
        ) k
        LEFT JOIN LATERAL (
            SELECT id, sealed_id, version, log_level FROM proxy_upstreamsession
            WHERE owner_id = coalesce(ses.id, c.id) AND server_id = s.id AND key = k.key AND s.protocol_era <> 'modern'
            OFFSET 0
        ) p ON true
        WHERE a.gateway_id = g.id
            AND a.removed_at IS NULL
            AND (q.servers IN (1, 3 /* not for calls */, 4 /* end */) OR q.kind = 'resource' OR a.alias = '' OR a.alias = split_part(q.name, '__', 1))
    ) END::text AS assignments,
    -- NULL means no limit. A token's own limit applies only if it is lower than the workspace's limit for each token.
    least(t.calls_per_minute, (SELECT token_calls_per_minute FROM accounts_workspacesettings WHERE id = 1))
        AS token_limit,
    g.calls_per_minute AS gateway_limit,
    (SELECT calls_per_minute FROM accounts_workspacesettings WHERE id = 1) AS workspace_limit,
    (SELECT payload_limit_bytes FROM accounts_workspacesettings WHERE id = 1 AND record_payloads) AS recorded,
    CASE WHEN ses.id IS NOT NULL THEN json_build_object(
        'id', ses.id, 'version', ses.version, 'capabilities', ses.capabilities, 'declared', ses.declared,
        'log_level', ses.log_level, 'client_name', ses.client_name, 'client_version', ses.client_version,
        'is_lost', ses.lost_at IS NOT NULL
    ) END::text AS session,
    q.servers > 0 AND EXISTS (
        SELECT FROM gateways_assignment a
        WHERE a.gateway_id = g.id AND a.removed_at IS NULL
            AND EXISTS (SELECT FROM servers_server WHERE id = a.server_id AND archived_at IS NULL OFFSET 0)
        OFFSET 1
    ) AS several_servers,
    CASE WHEN r.rules IS NOT NULL THEN json_build_object(
        'rules', r.rules,
        'teams', (
            SELECT json_agg(name ORDER BY name) FROM accounts_team
            WHERE id IN (SELECT team_id FROM accounts_team_users WHERE user_id = u.id)
        ),
        'role', coalesce((SELECT name FROM accounts_role WHERE id = u.role_id), ''),
        'zone', (SELECT zone FROM accounts_workspacesettings WHERE id = 1),
        'host_kind', h.kind,
        'gateway_slug', g.slug
    ) END::text AS rules
FROM unnest($1::int[], $2::bytea[], $3::text[], $4::text[], $5::int[], $6::text[], $7::text[], $8::bytea[], $9::text[])
    AS q (n, digest, checksum, slug, servers, name, kind, session, declared)
/* token */
CROSS JOIN LATERAL (
    SELECT id, name, prefix, revoked_at, expires_at, allowed_ips, scope_all, connection_id,
        false AS by_oauth, false AS stale, calls_per_minute
    FROM tokens_token
    WHERE digest = q.digest AND kind = 'access'
    UNION ALL
    -- A replaced secret may stay valid for a while; it is logged with its own prefix.
    SELECT id, name, previous_prefix, revoked_at, expires_at, allowed_ips, scope_all, connection_id,
        false, false, calls_per_minute
    FROM tokens_token
    WHERE previous_digest = q.digest AND previous_ends_at > statement_timestamp() AND kind = 'access'
    /* not for calls */
    UNION ALL
    -- An OAuth token has the state of its connection's key, and is stale if the key was regenerated.
    SELECT k.id, k.name, k.prefix, k.revoked_at, o.expires, NULL, true, b.connection_id,
        true, b.generation <> k.generation, k.calls_per_minute
    FROM oauth2_provider_accesstoken o
    JOIN oauth_binding b ON b.access_token_id = o.id
    CROSS JOIN LATERAL (
        SELECT id, name, prefix, revoked_at, generation, calls_per_minute FROM tokens_token
        WHERE connection_id = b.connection_id AND kind = 'key'
        ORDER BY revoked_at DESC NULLS FIRST, created_at DESC LIMIT 1
    ) k
    WHERE o.token_checksum = q.checksum
    /* end */
) t
CROSS JOIN LATERAL (
    SELECT id, gateway_id, host_id, user_id, enabled, revoked_at
    FROM connections_connection WHERE id = t.connection_id OFFSET 0
) c
/* end token */
CROSS JOIN LATERAL (
    SELECT id, name, description, slug, enabled, archived_at, reach, hosts_allowed, tools_given, changed_definitions,
        calls_per_minute
    FROM gateways_gateway WHERE id = c.gateway_id OFFSET 0
) g
CROSS JOIN LATERAL (
    SELECT id, name, enabled, archived_at, needs_approval, approved_at, kind
    FROM hosts_host WHERE id = c.host_id OFFSET 0
) h
LEFT JOIN LATERAL (
    SELECT allowed, tool_set_id FROM connections_hostatgateway WHERE gateway_id = g.id AND host_id = h.id OFFSET 0
) hg ON true
CROSS JOIN LATERAL (
    SELECT id, email, is_active, is_superuser, role_id FROM accounts_user WHERE id = c.user_id OFFSET 0
) u
LEFT JOIN LATERAL (
    SELECT id, version, capabilities, declared, log_level, client_name, client_version, lost_at
    FROM proxy_session WHERE digest = q.session AND connection_id = c.id OFFSET 0
) ses ON true
-- The rules for a call of a tool, NULL if there are none.
CROSS JOIN LATERAL (
    SELECT json_agg(json_build_array(
        id, name, revision, mode, effect, text, "when", tools, tool_effect,
        CASE WHEN (SELECT EXISTS (SELECT FROM rules_rule_servers)) THEN  -- Usually none, and a query for each is slow.
            (SELECT coalesce(json_agg(server_id), '[]') FROM rules_rule_servers WHERE rule_id = rules_rule.id)
        ELSE '[]' END
    ) ORDER BY position, created_at) AS rules
    FROM rules_rule
    WHERE q.kind = 'tool' AND q.servers IN (2 /* not for calls */, 4 /* end */)
        AND enabled AND (gateway_id IS NULL OR gateway_id = g.id)
) r
