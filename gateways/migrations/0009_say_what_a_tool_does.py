"""What a tool does, by the hints of its annotations, stands beside them: they are as long as its definition."""

from django.db import migrations, models

EFFECTS = [
    ("read_only", "Read only"),
    ("writes", "Writes"),
    ("destructive", "Destructive"),
    ("unknown", "Not said"),
]
# As `Effect.of` says it: a hint is true or false, and nothing else. A release that does not know the column writes
# annotations too, so the database works it out.
WORK_OUT = """
CREATE FUNCTION gateways_work_out_effect() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.effect := CASE
        WHEN NEW.annotations->'readOnlyHint' = 'true'::jsonb THEN 'read_only'
        WHEN NEW.annotations->'destructiveHint' = 'true'::jsonb THEN 'destructive'
        WHEN NEW.annotations->'readOnlyHint' = 'false'::jsonb THEN 'writes'
        ELSE 'unknown'
    END;
    RETURN NEW;
END $$;
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION gateways_work_out_effect() SET search_path = %I, pg_temp', current_schema());
END $$;
CREATE TRIGGER work_out_effect BEFORE INSERT OR UPDATE OF annotations, effect ON gateways_feature
    FOR EACH ROW EXECUTE FUNCTION gateways_work_out_effect();
"""
BEFORE = """
DROP TRIGGER work_out_effect ON gateways_feature;
DROP FUNCTION gateways_work_out_effect();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("gateways", "0008_read_tools_of_an_index"),
        ("proxy", "0014_leave_out_what_follows_from_a_definition"),
    ]

    operations = [
        migrations.AddField(
            "feature",
            "effect",
            models.CharField(
                max_length=12, choices=EFFECTS, default="unknown", db_default="unknown", editable=False
            ),
        ),
        migrations.RunSQL(WORK_OUT, BEFORE),
    ]
