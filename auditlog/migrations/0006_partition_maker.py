from django.db import migrations

# Partitions belong to the owner of the log, also when the role that serves calls makes one ahead of time. That role may
# make those of the coming weeks and nothing else: it owns neither the table nor any partition.
MAKE = """
CREATE FUNCTION auditlog_make_partition(starts date, ends date) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s' AS $make$
DECLARE
    part text := 'auditlog_call_' || CASE ends - starts
        WHEN 1 THEN to_char(starts, 'YYYY_MM_DD')
        WHEN 7 THEN to_char(starts, 'IYYY"_w"IW')
        ELSE to_char(starts, 'YYYY_MM') END;
BEGIN
    IF ends - starts NOT IN (1, 7, 28, 29, 30, 31) THEN
        RAISE EXCEPTION 'a partition holds a day, a week or a month' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_has_role(session_user, current_user, 'MEMBER')
        AND starts NOT BETWEEN current_date - 31 AND current_date + 45 THEN
        RAISE EXCEPTION 'only its owner makes partitions of another time' USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- ATTACH takes a weaker lock than CREATE ... PARTITION OF, so running calls go on.
    EXECUTE format(
        'CREATE TABLE IF NOT EXISTS %I (LIKE auditlog_call INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part
    );
    EXECUTE format(
        'ALTER TABLE auditlog_call ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', part,
        to_char(starts, 'YYYY-MM-DD') || ' 00:00+00', to_char(ends, 'YYYY-MM-DD') || ' 00:00+00'
    );
    RETURN part;
END $make$;
REVOKE EXECUTE ON FUNCTION auditlog_make_partition(date, date) FROM PUBLIC;
-- What it names is found where the log is, whatever its caller put elsewhere under the same name.
DO $$ BEGIN
    EXECUTE format(
        'ALTER FUNCTION auditlog_make_partition(date, date) SET search_path = %I, pg_temp', current_schema()
    );
END $$;
"""


class Migration(migrations.Migration):
    """A function that makes partitions of the log, for whoever may execute it."""

    dependencies = [("auditlog", "0005_leaner_indexes")]

    operations = [migrations.RunSQL(MAKE, "DROP FUNCTION auditlog_make_partition(date, date)")]
