"""At most one server of a gateway is without an alias: a name without one means a tool of that server alone.

Of several, the one that was assigned first keeps the names of its tools. Each other one gets its server's slug for an
alias, or the slug and a number where that is taken, and its tools are called by it from then on.
"""

from collections import defaultdict
from typing import Any

from django.db import migrations, models

from wire.definitions import exposed_name

LONGEST_ALIAS = 16


def give_aliases(apps: Any, schema_editor: Any) -> None:
    Assignment, Tool = apps.get_model("gateways", "Assignment"), apps.get_model("gateways", "Tool")
    bare = defaultdict(list)
    for assignment in Assignment.objects.filter(removed_at=None, alias="").order_by("created_at", "pk"):
        bare[assignment.gateway_id].append(assignment)
    for gateway_id, assignments in bare.items():
        taken = set(Assignment.objects.filter(removed_at=None, gateway=gateway_id).values_list("alias", flat=True))
        for assignment in assignments[1:]:
            assignment.alias = free(assignment.server.slug, taken)
            taken.add(assignment.alias)
            assignment.save(update_fields=["alias"])
            tools = list(Tool.objects.filter(assignment=assignment))
            for tool in tools:
                tool.exposed_name = exposed_name(assignment.alias, tool.name)
            Tool.objects.bulk_update(tools, ["exposed_name"], batch_size=1000)


def free(slug: str, taken: set[str]) -> str:
    """The slug, or its beginning and a number, that no other server of the gateway has for an alias."""
    alias, number = slug, 1
    while alias in taken:
        number += 1
        alias = f"{slug[: LONGEST_ALIAS - 1 - len(str(number))].rstrip('-')}-{number}"
    return alias


class Migration(migrations.Migration):
    dependencies = [("gateways", "0002_keep_shared_identities_apart")]

    operations = [
        migrations.RunPython(give_aliases, migrations.RunPython.noop),
        migrations.RemoveConstraint("assignment", "live_assignment_alias_is_unique_per_gateway"),
        migrations.AddConstraint(
            "assignment",
            models.UniqueConstraint(
                fields=("gateway", "alias"),
                condition=models.Q(removed_at=None),
                name="live_assignment_alias_is_unique_per_gateway",
            ),
        ),
    ]
