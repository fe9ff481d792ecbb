-- Takes calls from the counters of the current minute, which all workers share, for all waiting requests.
--
-- A minute begins with its first call. No more calls are taken than the limit allows; `taken` is the number taken by
-- this statement. Rows are written in order, so that workers do not deadlock.
--
-- $1 kind     workspace, gateway or token
-- $2 id       of the gateway or token, NULL for the workspace
-- $3 most     limit: calls per minute
-- $4 wanted   calls to take
-- $5 seconds  length of the minute
INSERT INTO proxy_ratecounter AS r (subject_type, subject_id, "window", most, calls, taken)
SELECT q.kind, q.id, statement_timestamp(), q.most, least(q.wanted, q.most), least(q.wanted, q.most)
FROM unnest($1, $2, $3, $4) AS q (kind, id, most, wanted)
ORDER BY q.kind, q.id
ON CONFLICT (subject_type, subject_id) DO UPDATE SET (most, "window", calls, taken) = (
    SELECT excluded.most, CASE WHEN runs THEN r."window" ELSE excluded."window" END, used + got, got
    -- PostgreSQL 15 requires the aliases.
    FROM (SELECT r."window" + make_interval(secs => $5) > excluded."window" AS runs) AS a
    CROSS JOIN LATERAL (SELECT CASE WHEN runs THEN r.calls ELSE 0 END AS used) AS b
    CROSS JOIN LATERAL (SELECT greatest(0, least(excluded.taken, excluded.most - used)) AS got) AS c
)
RETURNING
    subject_type,
    subject_id::text,
    taken,
    extract(epoch FROM "window" + make_interval(secs => $5) - statement_timestamp())
