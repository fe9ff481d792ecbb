from django.db import migrations, models

# Until now any shared identity could be used at any gateway: it stays where it is in use.
KEEP = """
INSERT INTO gateways_gateway_shared_identities (gateway_id, identity_id)
SELECT DISTINCT gateway_id, shared_identity_id FROM gateways_assignment
WHERE removed_at IS NULL AND shared_identity_id IS NOT NULL
"""


class Migration(migrations.Migration):
    dependencies = [
        ("gateways", "0003_alias_for_all_but_one_server"),
        ("servers", "0003_identity_waits_to_be_confirmed"),
    ]
    operations = [
        migrations.AddField(
            model_name="gateway",
            name="shared_identities",
            field=models.ManyToManyField(blank=True, related_name="gateways", to="servers.identity"),
        ),
        migrations.RunSQL(KEEP, migrations.RunSQL.noop),
    ]
