from django.db import migrations

# The end of a session ends what is under way in it, and nothing else: of nobody else has to be decided anew.
FUNCTION = """
CREATE FUNCTION proxy_tell_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gateway', 'ended ' || OLD.id);
    RETURN NULL;
END $$;
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION proxy_tell_ended() SET search_path = %I, pg_temp', current_schema());
END $$;
DROP TRIGGER tell_cut_of_row ON proxy_session;
CREATE TRIGGER tell_ended AFTER DELETE ON proxy_session FOR EACH ROW EXECUTE FUNCTION proxy_tell_ended();
"""
BEFORE = """
DROP TRIGGER tell_ended ON proxy_session;
CREATE TRIGGER tell_cut_of_row AFTER DELETE ON proxy_session FOR EACH ROW EXECUTE FUNCTION proxy_tell_cut();
DROP FUNCTION proxy_tell_ended();
"""


class Migration(migrations.Migration):
    dependencies = [("proxy", "0012_number_events_by_session")]

    operations = [migrations.RunSQL(FUNCTION, BEFORE)]
