"""Time the export and the plan of a large workspace: `python -m bench.configuration`.

It has 50 gateways, 200 servers, 5,000 tools and 40 roles, in a transaction that is rolled back.
"""

import os
import time
from collections.abc import Callable


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    import django  # noqa: PLC0415

    django.setup()
    from django.db import transaction  # noqa: PLC0415

    from gatewayadmin.config import database  # noqa: PLC0415

    database.require()
    with transaction.atomic():
        measure()
        transaction.set_rollback(True)


def measure() -> None:
    from accounts.models import Role, User, permissions_of  # noqa: PLC0415
    from capabilities import Capability  # noqa: PLC0415
    from configuration import document  # noqa: PLC0415
    from configuration.export import export  # noqa: PLC0415
    from configuration.plan import plan  # noqa: PLC0415

    role = Role.objects.create(name="Bench")
    role.permissions.set(permissions_of(Capability))
    owner = User.objects.create_user("bench@example.com", None, role=role)
    fill(owner)
    text = timed("export", lambda: export(owner))
    print(f"{len(text.splitlines()):,} lines")
    same = timed("plan of the export", lambda: plan(document.read({"gateway.yaml": text}), owner))
    assert same.changes == []
    edited = text.replace("timeout_seconds: 30", "timeout_seconds: 31").replace("enabled: true", "enabled: false", 20)
    made = timed("plan of an edited export", lambda: plan(document.read({"gateway.yaml": edited}), owner))
    print(f"{len(made.changes):,} changes")


def timed[Result](what: str, work: Callable[[], Result]) -> Result:
    began, cpu = time.perf_counter(), time.process_time()
    result = work()
    print(f"{what}: {time.perf_counter() - began:.1f} s, of them {time.process_time() - cpu:.1f} s of processor time")
    return result


def fill(owner: object) -> None:
    from accounts.models import Role, permissions_of  # noqa: PLC0415
    from capabilities import Capability  # noqa: PLC0415
    from gateways.models import Assignment, Feature, Gateway  # noqa: PLC0415
    from servers.models import Server  # noqa: PLC0415

    for number in range(40):
        Role.objects.create(name=f"Bench {number}").permissions.set(permissions_of([*Capability][: number % 20]))
    servers = Server.objects.bulk_create(
        Server(slug=f"bench-{number}", name=f"Bench {number}", url=f"https://93.184.216.34/{number}")
        for number in range(200)
    )
    gateways = Gateway.objects.bulk_create(Gateway(slug=f"bench-{n}", name=f"Bench {n}") for n in range(50))
    places = Assignment.objects.bulk_create(
        Assignment(gateway=gateways[number % 50], server=server, alias=server.slug)
        for number, server in enumerate(servers)
    )
    Feature.objects.bulk_create(
        Feature(assignment=place, name=f"tool_{n}", exposed_name=f"{place.alias}__tool_{n}", enabled=n % 2 == 0)
        for place in places
        for n in range(25)
    )


if __name__ == "__main__":
    main()
