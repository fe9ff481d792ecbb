"""Make the logs insert-only, and add a function that creates the partitions of the call log."""

from django.db import migrations

# Row triggers on a partitioned table also apply to statements on its partitions.
REFUSE_CHANGES = """
CREATE FUNCTION auditlog_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is insert-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER auditlog_call_is_insert_only BEFORE UPDATE OR DELETE ON auditlog_call
    FOR EACH ROW EXECUTE FUNCTION auditlog_refuse_change();
CREATE TRIGGER auditlog_event_is_insert_only BEFORE UPDATE OR DELETE ON auditlog_event
    FOR EACH ROW EXECUTE FUNCTION auditlog_refuse_change();
-- `leaves` may change: retention drops the digests together with the rows they are of.
CREATE TRIGGER auditlog_checkpoint_is_insert_only
    BEFORE DELETE OR UPDATE OF number, body, signature, public_key, newest_at ON auditlog_checkpoint
    FOR EACH ROW EXECUTE FUNCTION auditlog_refuse_change();
"""
ALLOW_CHANGES = """
DROP TRIGGER auditlog_checkpoint_is_insert_only ON auditlog_checkpoint;
DROP TRIGGER auditlog_event_is_insert_only ON auditlog_event;
DROP TRIGGER auditlog_call_is_insert_only ON auditlog_call;
DROP FUNCTION auditlog_refuse_change();
"""

# Partitions belong to the owner of the log, even if the serving role creates them. The serving role owns neither the
# table nor any partition, and may only create partitions that start between 31 days ago and 45 days ahead.
MAKE_PARTITION = """
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
-- A fixed search path: the function runs with its owner's rights, and callers could put other objects before ours.
DO $$ BEGIN
    EXECUTE format(
        'ALTER FUNCTION auditlog_make_partition(date, date) SET search_path = %I, pg_temp', current_schema()
    );
END $$;
"""

# Rows are found by their unique columns, so `id` needs no index. Rows of the current period are updated often, so pages
# have free space: the new version of a row then fits in the same page, and no index changes.
ROLLUP_STORAGE = """
ALTER TABLE auditlog_rollup DROP CONSTRAINT auditlog_rollup_pkey;
ALTER TABLE auditlog_rollup SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02);
"""
DEFAULT_STORAGE = """
ALTER TABLE auditlog_rollup RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE auditlog_rollup ADD CONSTRAINT auditlog_rollup_pkey PRIMARY KEY (id);
"""


class Migration(migrations.Migration):
    dependencies = [("auditlog", "0001_initial")]

    operations = [
        migrations.RunSQL(REFUSE_CHANGES, ALLOW_CHANGES),
        migrations.RunSQL(MAKE_PARTITION, "DROP FUNCTION auditlog_make_partition(date, date)"),
        migrations.RunSQL(ROLLUP_STORAGE, DEFAULT_STORAGE),
    ]
