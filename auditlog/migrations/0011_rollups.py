"""Roll-ups of the log, and how far it has been counted."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('auditlog', '0010_keep_error_text'),
    ]

    operations = [
        migrations.CreateModel(
            name='Rollup',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('seconds', models.IntegerField()),
                ('cube', models.SmallIntegerField()),
                ('at', models.DateTimeField()),
                ('outcome', models.CharField(max_length=16)),
                ('deny_reason', models.CharField(blank=True, max_length=40)),
                ('host_id', models.UUIDField(null=True)),
                ('user_id', models.UUIDField(null=True)),
                ('gateway_id', models.UUIDField(null=True)),
                ('server_id', models.UUIDField(null=True)),
                ('method', models.CharField(max_length=64, null=True)),
                ('feature_name', models.CharField(max_length=300, null=True)),
                ('calls', models.BigIntegerField()),
                ('duration_ms', models.FloatField()),
                *((f'ms_{n}', models.IntegerField(null=True)) for n in range(128)),
            ],
            options={
                'default_permissions': (),
                'indexes': [models.Index(condition=models.Q(('host_id__isnull', False)), fields=['host_id', 'cube', 'seconds', 'at'], name='rollup_by_host'), models.Index(condition=models.Q(('user_id__isnull', False)), fields=['user_id', 'cube', 'seconds', 'at'], name='rollup_by_user'), models.Index(condition=models.Q(('gateway_id__isnull', False)), fields=['gateway_id', 'cube', 'seconds', 'at'], name='rollup_by_gateway'), models.Index(condition=models.Q(('server_id__isnull', False)), fields=['server_id', 'cube', 'seconds', 'at'], name='rollup_by_server'), models.Index(condition=models.Q(('feature_name__isnull', False)), fields=['feature_name', 'cube', 'seconds', 'at'], name='rollup_by_feature_name')],
                'constraints': [models.UniqueConstraint(fields=('cube', 'seconds', 'at', 'outcome', 'deny_reason', 'host_id', 'user_id', 'gateway_id', 'server_id', 'method', 'feature_name'), name='rollup_counts_once', nulls_distinct=False)],
            },
        ),
        migrations.CreateModel(
            name='RollupState',
            fields=[
                ('id', models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('counted_to', models.BigIntegerField()),
                ('near_from', models.DateTimeField()),
                ('late_counted_to', models.BigIntegerField()),
                ('began_at_id', models.BigIntegerField()),
                ('counted_from', models.DateTimeField()),
                ('minutes_from', models.DateTimeField()),
                ('hours_from', models.DateTimeField()),
                ('days_from', models.DateTimeField()),
                ('counted_at', models.DateTimeField()),
            ],
            options={
                'default_permissions': (),
                'constraints': [models.CheckConstraint(condition=models.Q(('id', 1)), name='rollups_have_one_state')],
            },
        ),
        # What is counted again and again finds place in its page, and none of its indexes hears of it.
        migrations.RunSQL(
            'ALTER TABLE auditlog_rollup SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02)',
            migrations.RunSQL.noop,
        ),
    ]
