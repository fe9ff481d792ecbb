"""Checkpoints of the log, and the key they are signed with."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('auditlog', '0011_rollups'),
    ]

    operations = [
        migrations.CreateModel(
            name='Checkpoint',
            fields=[
                ('number', models.BigIntegerField(primary_key=True, serialize=False)),
                ('body', models.TextField()),
                ('signature', models.BinaryField()),
                ('public_key', models.BinaryField()),
                ('leaves', models.BinaryField(null=True)),
                ('newest_at', models.DateTimeField(null=True)),
            ],
            options={
                'ordering': ('number',),
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='CheckpointKey',
            fields=[
                ('id', models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('sealed', models.BinaryField()),
                ('key_id', models.CharField(max_length=8)),
            ],
            options={
                'default_permissions': (),
                'constraints': [models.CheckConstraint(condition=models.Q(('id', 1)), name='checkpoints_have_one_key')],
            },
        ),
        # Only the digests of rows that retention drops are ever taken away.
        migrations.RunSQL(
            """
            CREATE TRIGGER auditlog_checkpoint_is_insert_only
                BEFORE DELETE OR UPDATE OF number, body, signature, public_key, newest_at ON auditlog_checkpoint
                FOR EACH ROW EXECUTE FUNCTION auditlog_refuse_change();
            """,
            "DROP TRIGGER auditlog_checkpoint_is_insert_only ON auditlog_checkpoint",
        ),
    ]
