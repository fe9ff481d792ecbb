"""The history of access, and the triggers that write the history.

The history has the members of teams, the roles, and the people and teams to whom gateways are open.
"""

from django.db import migrations, models
from django.db.models import Q

# `access_note` begins or ends a fact. The functions get a fixed search path below, because the sessions whose changes
# call them may have any search path.
NOTE = """
CREATE FUNCTION access_note(what text, about uuid, other uuid, called text, is_true boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF is_true THEN
        INSERT INTO access_fact (kind, subject, object, label, began_at)
        VALUES (what, about, other, coalesce(called, ''), statement_timestamp()) ON CONFLICT DO NOTHING;
    ELSE
        UPDATE access_fact SET ended_at = statement_timestamp()
        WHERE kind = what AND subject = about AND object IS NOT DISTINCT FROM other AND ended_at IS NULL;
    END IF;
END $$;

CREATE FUNCTION access_note_member() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM access_note('member', OLD.user_id, OLD.team_id, NULL, false);
    ELSE
        PERFORM access_note(
            'member', NEW.user_id, NEW.team_id, (SELECT name FROM accounts_team WHERE id = NEW.team_id), true
        );
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION access_note_open_to() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM access_note('open_to', OLD.gateway_id, OLD.team_id, NULL, false);
    ELSE
        PERFORM access_note(
            'open_to', NEW.gateway_id, NEW.team_id, (SELECT name FROM accounts_team WHERE id = NEW.team_id), true
        );
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION access_note_gateway() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM access_note('everyone', NEW.id, NULL, NULL, NEW.reach = 'everyone');
    PERFORM access_note('only_granted', NEW.id, NULL, NULL, NEW.tools_given <> 'all');
    RETURN NULL;
END $$;

CREATE FUNCTION access_note_user() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.role_id IS DISTINCT FROM NEW.role_id THEN
        PERFORM access_note('role', OLD.id, OLD.role_id, NULL, false);
    END IF;
    IF NEW.role_id IS NOT NULL THEN
        PERFORM access_note('role', NEW.id, NEW.role_id, (SELECT name FROM accounts_role WHERE id = NEW.role_id), true);
    END IF;
    PERFORM access_note('superuser', NEW.id, NULL, NULL, NEW.is_superuser);
    PERFORM access_note('inactive', NEW.id, NULL, NULL, NOT NEW.is_active);
    RETURN NULL;
END $$;

CREATE FUNCTION access_note_role() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM access_note('only_looks', NEW.id, NULL, NULL, NOT NEW.uses_gateways);
    RETURN NULL;
END $$;

CREATE FUNCTION access_note_permission() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed record;
BEGIN
    IF TG_OP = 'DELETE' THEN
        changed := OLD;
    ELSE
        changed := NEW;
    END IF;
    IF EXISTS (
        SELECT FROM auth_permission p JOIN django_content_type c ON c.id = p.content_type_id
        WHERE p.id = changed.permission_id AND p.codename = 'view_gateway' AND c.app_label = 'gateways'
    ) THEN
        PERFORM access_note('uses_all', changed.role_id, NULL, NULL, TG_OP <> 'DELETE');
    END IF;
    RETURN NULL;
END $$;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'access_note(text, uuid, uuid, text, boolean)', 'access_note_member()', 'access_note_open_to()',
        'access_note_gateway()', 'access_note_user()', 'access_note_role()', 'access_note_permission()'
    ] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END $$;
"""
DROP_NOTE = """
DROP FUNCTION access_note_permission(), access_note_role(), access_note_user(), access_note_gateway(),
    access_note_open_to(), access_note_member(), access_note(text, uuid, uuid, text, boolean)
"""
TRIGGERS = """
CREATE TRIGGER note_access AFTER INSERT OR DELETE ON accounts_team_users
    FOR EACH ROW EXECUTE FUNCTION access_note_member();
CREATE TRIGGER note_access AFTER INSERT OR DELETE ON gateways_gateway_teams
    FOR EACH ROW EXECUTE FUNCTION access_note_open_to();
CREATE TRIGGER note_access_of_new AFTER INSERT ON gateways_gateway
    FOR EACH ROW EXECUTE FUNCTION access_note_gateway();
CREATE TRIGGER note_access AFTER UPDATE ON gateways_gateway FOR EACH ROW
    WHEN ((OLD.reach, OLD.tools_given) IS DISTINCT FROM (NEW.reach, NEW.tools_given))
    EXECUTE FUNCTION access_note_gateway();
CREATE TRIGGER note_access_of_new AFTER INSERT ON accounts_user FOR EACH ROW EXECUTE FUNCTION access_note_user();
CREATE TRIGGER note_access AFTER UPDATE ON accounts_user FOR EACH ROW
    WHEN ((OLD.role_id, OLD.is_superuser, OLD.is_active) IS DISTINCT FROM
        (NEW.role_id, NEW.is_superuser, NEW.is_active))
    EXECUTE FUNCTION access_note_user();
CREATE TRIGGER note_access_of_new AFTER INSERT ON accounts_role FOR EACH ROW EXECUTE FUNCTION access_note_role();
CREATE TRIGGER note_access AFTER UPDATE ON accounts_role FOR EACH ROW
    WHEN (OLD.uses_gateways IS DISTINCT FROM NEW.uses_gateways) EXECUTE FUNCTION access_note_role();
CREATE TRIGGER note_access AFTER INSERT OR DELETE ON accounts_role_permissions
    FOR EACH ROW EXECUTE FUNCTION access_note_permission();
"""
DROP_TRIGGERS = """
DROP TRIGGER note_access ON accounts_team_users;
DROP TRIGGER note_access ON gateways_gateway_teams;
DROP TRIGGER note_access_of_new ON gateways_gateway;
DROP TRIGGER note_access ON gateways_gateway;
DROP TRIGGER note_access_of_new ON accounts_user;
DROP TRIGGER note_access ON accounts_user;
DROP TRIGGER note_access_of_new ON accounts_role;
DROP TRIGGER note_access ON accounts_role;
DROP TRIGGER note_access ON accounts_role_permissions;
"""
KINDS = [
    ("member", "The person is in the team."),
    ("open_to", "The gateway is open to the team."),
    ("everyone", "The gateway is open to everyone."),
    ("only_granted", "The gateway gives only granted tools."),
    ("role", "The person has the role."),
    ("superuser", "The person is a superuser."),
    ("inactive", "The person is deactivated."),
    ("only_looks", "People with the role cannot use gateways."),
    ("uses_all", "People with the role use all gateways."),
]


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_split_capabilities"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("gateways", "0005_access_requests"),
    ]

    operations = [
        migrations.CreateModel(
            name="Fact",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(choices=KINDS, max_length=12)),
                ("subject", models.UUIDField()),
                ("object", models.UUIDField(null=True)),
                ("label", models.CharField(blank=True, db_default="", default="", max_length=80)),
                ("began_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                ("from_events", models.BooleanField(db_default=False, default=False)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        condition=Q(ended_at=None),
                        fields=("kind", "subject", "object"),
                        name="present_fact_is_unique",
                        nulls_distinct=False,
                    )
                ],
                "indexes": [models.Index(fields=["kind", "subject"], name="fact_of_subject")],
            },
        ),
        migrations.RunSQL(NOTE, DROP_NOTE),
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
    ]
