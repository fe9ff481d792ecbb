"""Weeks are counted instead of moving windows; all of the log is counted anew, as windows of 7 days look like weeks."""

from django.db import migrations

ANEW = "TRUNCATE auditlog_rollup, auditlog_rollupprogress"


class Migration(migrations.Migration):

    dependencies = [("auditlog", "0017_leaner_rollups")]

    operations = [migrations.RunSQL(ANEW, ANEW), migrations.DeleteModel("RollupWindow")]
