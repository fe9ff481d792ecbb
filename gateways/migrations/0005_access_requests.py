"""Requests for access, and grants that end on a date."""

import uuid
from importlib import import_module

import auditlog.versions
import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


# Replaces the function of migration 0003, because grants may now end on a date.
SETS_GIVEN = """
CREATE OR REPLACE FUNCTION gateways_sets_given(granting_gateway uuid, people uuid[])
RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN ARRAY(
        SELECT DISTINCT r.tool_set_id FROM gateways_toolgrant r
        WHERE r.gateway_id = granting_gateway AND r.ended_at IS NULL
        AND (r.ends_at IS NULL OR r.ends_at > statement_timestamp()) AND (
            r.everyone OR r.user_id = ANY (people)
            OR r.team_id IN (SELECT tu.team_id FROM accounts_team_users tu WHERE tu.user_id = ANY (people))
        )
    );
END $$;
"""
NO_DATES = import_module("gateways.migrations.0003_give_tools").SETS_GIVEN.replace("CREATE ", "CREATE OR REPLACE ", 1)

# Returns whether a grant opens a gateway for teams to a person. It is called only for people without another access to
# the gateway, so that the requests of all other people stay fast.
OPENED = """
CREATE FUNCTION gateways_opened_to(gateway uuid, person uuid) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM gateways_gatewaygrant r
        WHERE r.gateway_id = gateway AND r.user_id = person AND r.ended_at IS NULL
            AND (r.ends_at IS NULL OR r.ends_at > statement_timestamp())
    );
END $$;
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION gateways_opened_to(uuid, uuid) SET search_path = %I, pg_temp', current_schema());
END $$;
"""
DROP_OPENED = "DROP FUNCTION gateways_opened_to(uuid, uuid)"


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0001_initial'),
        ('gateways', '0004_view_permission'),
        ('servers', '0001_initial'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='AccessRequest',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('reason', models.CharField(max_length=500)),
                ('days', models.PositiveSmallIntegerField()),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('state', models.CharField(choices=[('open', 'Waiting'), ('approved', 'Approved'), ('declined', 'Declined'), ('withdrawn', 'Withdrawn')], default='open', max_length=10)),
                ('decided_at', models.DateTimeField(blank=True, null=True)),
                ('answer', models.CharField(blank=True, default='', max_length=500)),
            ],
            options={
                'ordering': ('-created_at',),
            },
            bases=(auditlog.versions.Versioned, models.Model),
        ),
        migrations.CreateModel(
            name='GatewayGrant',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('given_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('ends_at', models.DateTimeField(blank=True, null=True)),
                ('ended_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={
                'ordering': ('-given_at',),
            },
            bases=(auditlog.versions.Versioned, models.Model),
        ),
        migrations.AddField(
            model_name='gateway',
            name='approvers',
            field=models.ManyToManyField(blank=True, related_name='approves', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='toolgrant',
            name='ends_at',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='accessrequest',
            name='decided_by',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='accessrequest',
            name='gateway',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='access_requests', to='gateways.gateway'),
        ),
        migrations.AddField(
            model_name='accessrequest',
            name='tool_set',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='gateways.toolset'),
        ),
        migrations.AddField(
            model_name='accessrequest',
            name='user',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='access_requests', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='toolgrant',
            name='request',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='gateways.accessrequest'),
        ),
        migrations.AddField(
            model_name='gatewaygrant',
            name='ended_by',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='gatewaygrant',
            name='gateway',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='people_given', to='gateways.gateway'),
        ),
        migrations.AddField(
            model_name='gatewaygrant',
            name='given_by',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='gatewaygrant',
            name='request',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='gateways.accessrequest'),
        ),
        migrations.AddField(
            model_name='gatewaygrant',
            name='user',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='gateways_given', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddIndex(
            model_name='accessrequest',
            index=models.Index(condition=models.Q(('state', 'open')), fields=['created_at'], name='open_access_request'),
        ),
        migrations.AddConstraint(
            model_name='accessrequest',
            constraint=models.UniqueConstraint(condition=models.Q(('state', 'open')), fields=('user', 'gateway', 'tool_set'), name='open_access_request_is_unique', nulls_distinct=False),
        ),
        migrations.AddConstraint(
            model_name='accessrequest',
            constraint=models.CheckConstraint(condition=models.Q(('decided_by__isnull', True), models.Q(('decided_by', models.F('user')), _negated=True), ('state', 'withdrawn'), _connector='OR'), name='nobody_decides_on_their_own_request'),
        ),
        migrations.AddConstraint(
            model_name='gatewaygrant',
            constraint=models.UniqueConstraint(condition=models.Q(('ended_at', None)), fields=('gateway', 'user'), name='live_gateway_grant_is_unique'),
        ),
        migrations.RunSQL(SETS_GIVEN, NO_DATES),
        migrations.RunSQL(OPENED, DROP_OPENED),
        # Calls read this table, and wait for the end of this migration from here on.
        migrations.AddField(
            model_name='gateway',
            name='most_request_days',
            field=models.PositiveSmallIntegerField(db_default=90, default=90),
        ),
        migrations.AddField(
            model_name='gateway',
            name='request_days',
            field=models.PositiveSmallIntegerField(db_default=30, default=30),
        ),
        migrations.AddField(
            model_name='gateway',
            name='takes_requests',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddConstraint(
            model_name='gateway',
            constraint=models.CheckConstraint(condition=models.Q(('request_days__gte', 1), ('request_days__lte', models.F('most_request_days'))), name='request_days_are_within_the_most'),
        ),
    ]
