from django.db import migrations


class Migration(migrations.Migration):
    """The model moves to accounts, with its table as it is."""

    dependencies = [("oauth", "0002_attempts"), ("accounts", "0005_count_attempts")]

    operations = [migrations.SeparateDatabaseAndState(state_operations=[migrations.DeleteModel(name="Attempt")])]
