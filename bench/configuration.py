"""Measure the duration of export, plan and apply of a large workspace: `python -m bench.configuration`.

It creates a workspace with 50 gateways, 200 servers, 5,000 tools, 40 roles and 40 rules. All its transactions are
rolled back, so nothing remains. It also applies the export to a workspace without these objects. A new export of that
workspace must equal the first export.
"""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accounts.models import User


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    import django  # noqa: PLC0415

    django.setup()
    from django.db import transaction  # noqa: PLC0415

    from gatewayadmin.config import database  # noqa: PLC0415

    database.require()
    with transaction.atomic():
        text = measure()
        transaction.set_rollback(True)
    with transaction.atomic():
        measure_apply(text)
        transaction.set_rollback(True)


def bench_owner() -> "User":
    from accounts.models import Role, User, permissions_of  # noqa: PLC0415
    from capabilities import Capability  # noqa: PLC0415

    role = Role.objects.create(name="Bench")
    role.permissions.set(permissions_of(Capability))
    return User.objects.create_user("bench@example.com", None, role=role)


def measure_apply(text: str) -> None:
    """Apply the export `text` to a workspace without the exported objects. Compare a new export with `text`."""
    from configuration import document  # noqa: PLC0415
    from configuration.apply import apply  # noqa: PLC0415
    from configuration.export import export  # noqa: PLC0415

    owner = bench_owner()
    made = timed("apply of the export", lambda: apply(document.read({"gateway.yaml": text}), by=owner))
    print(f"{len(made.changes):,} changes")
    assert timed("export", lambda: export(owner)) == text


def measure() -> str:
    from configuration import document  # noqa: PLC0415
    from configuration.export import export  # noqa: PLC0415
    from configuration.plan import plan  # noqa: PLC0415

    owner = bench_owner()
    fill(owner)
    text = timed("export", lambda: export(owner))
    print(f"{len(text.splitlines()):,} lines")
    same = timed("plan of the export", lambda: plan(document.read({"gateway.yaml": text}), owner))
    assert same.changes == []
    edited = text.replace("timeout_seconds: 30", "timeout_seconds: 31").replace("enabled: true", "enabled: false", 20)
    made = timed("plan of an edited export", lambda: plan(document.read({"gateway.yaml": edited}), owner))
    print(f"{len(made.changes):,} changes")
    return text


def timed[Result](what: str, work: Callable[[], Result]) -> Result:
    began, cpu = time.perf_counter(), time.process_time()
    result = work()
    print(f"{what}: {time.perf_counter() - began:.1f} s, of them {time.process_time() - cpu:.1f} s of processor time")
    return result


def fill(owner: "User") -> None:
    from accounts.models import Role, permissions_of  # noqa: PLC0415
    from capabilities import Capability  # noqa: PLC0415
    from gateways.models import Assignment, Feature, Gateway  # noqa: PLC0415
    from rules.models import Rule  # noqa: PLC0415
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
    for n in range(40):
        chosen: dict[str, Any] = {"gateway": gateways[n], "servers": servers[n : n + 2]} if n % 2 else {}
        Rule.objects.add(name=f"Bench {n}", effect="refuse", when=f"args.amount > {n}", mode="on", **chosen, by=owner)


if __name__ == "__main__":
    main()
