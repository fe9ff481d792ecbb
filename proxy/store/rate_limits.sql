-- Takes calls off the counters of a minute that all workers share, for all requests that wait together.
--
-- A minute begins with its first call. What is taken never exceeds the limit; `taken` is what this
-- very statement got. In order, so that no two workers wait for each other.
--
-- $1 kind     workspace, gateway or token
-- $2 id       of the gateway or token, NULL for the workspace
-- $3 most     the limit: calls a minute
-- $4 wanted   calls to take
-- $5 seconds  how long the minute is
INSERT INTO proxy_ratecounter AS r (subject_type, subject_id, "window", most, calls, taken)
SELECT q.kind, q.id, statement_timestamp(), q.most, least(q.wanted, q.most), least(q.wanted, q.most)
FROM unnest($1, $2, $3, $4) AS q (kind, id, most, wanted)
ORDER BY q.kind, q.id
ON CONFLICT (subject_type, subject_id) DO UPDATE SET (most, "window", calls, taken) = (
    SELECT excluded.most, CASE WHEN runs THEN r."window" ELSE excluded."window" END, used + got, got
    -- The aliases are for PostgreSQL 15: a subquery may go without from 16 on.
    FROM (SELECT r."window" + make_interval(secs => $5) > excluded."window" AS runs) AS a
    CROSS JOIN LATERAL (SELECT CASE WHEN runs THEN r.calls ELSE 0 END AS used) AS b
    CROSS JOIN LATERAL (SELECT greatest(0, least(excluded.taken, excluded.most - used)) AS got) AS c
)
RETURNING
    subject_type,
    subject_id::text,
    taken,
    extract(epoch FROM "window" + make_interval(secs => $5) - statement_timestamp())
