"""Adds columns to rules: the approvers of held calls, and the time for which held calls wait."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("rules", "0002_built_in_roles"), ("accounts", "0003_zone")]

    operations = [
        migrations.AddField(
            "rule",
            "approvers",
            models.CharField(
                choices=[
                    ("anybody", "Everybody who may decide on held calls"),
                    ("team", "A team"),
                    ("person", "The person the agent acts for"),
                ],
                db_default="anybody",
                default="anybody",
                max_length=10,
            ),
        ),
        migrations.AddField(
            "rule",
            "approver_team",
            models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="accounts.team",
            ),
        ),
        migrations.AddField("rule", "somebody_else", models.BooleanField(db_default=False, default=False)),
        migrations.AddField("rule", "hold_minutes", models.PositiveSmallIntegerField(db_default=15, default=15)),
        migrations.AddConstraint(
            "rule",
            models.CheckConstraint(
                condition=models.Q(("hold_minutes__gte", 1), ("hold_minutes__lte", 1440)),
                name="rule_holds_for_a_day_at_most",
            ),
        ),
        migrations.AddConstraint(
            "rule",
            models.CheckConstraint(
                condition=models.Q(
                    models.Q(("approvers", "person"), _negated=True), ("somebody_else", False), _connector="OR"
                ),
                name="somebody_can_decide_for_rule",
            ),
        ),
    ]
