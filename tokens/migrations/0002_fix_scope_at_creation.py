"""A token's servers are chosen when it is created and never change."""

from django.db import migrations

REFUSE = """
CREATE FUNCTION tokens_refuse_scope_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the servers of a token cannot be changed' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER tokens_scope_is_fixed BEFORE UPDATE OR DELETE ON tokens_tokenscope
    FOR EACH ROW EXECUTE FUNCTION tokens_refuse_scope_change();
"""
ALLOW = """
DROP TRIGGER tokens_scope_is_fixed ON tokens_tokenscope;
DROP FUNCTION tokens_refuse_scope_change();
"""


class Migration(migrations.Migration):
    dependencies = [("tokens", "0001_initial")]

    operations = [migrations.RunSQL(REFUSE, ALLOW)]
