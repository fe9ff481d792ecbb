"""Tool lists and calls agree on the server of a tool name, in every order of the servers."""

from itertools import permutations, product

from proxy.access.decision import AssignedServer, FeatureRow
from proxy.access.features import OutOfScope, Refusal, Resolved, UnknownFeature, resolve_name, server_of
from wire.definitions import exposed_name

NAMES = ("it", "docs__it", "github__it", "docs__", "other__it", "x" * 80)


def assigned(slug: str, alias: str, rows: tuple[object, ...] = (), **changes: object) -> AssignedServer:
    return AssignedServer(
        id=slug,
        alias=alias,
        enabled=True,
        scheme="none",
        policy="allow_all",
        in_scope=True,
        server_id=slug,
        server_name=slug,
        url="http://127.0.0.1:1/mcp",
        server_enabled=True,
        auth_type="none",
        header_name="",
        timeout_s=30,
        max_concurrent=64,
        eras="",
        identity_id=None,
        identity_label=None,
        identity_enabled=None,
        ciphertext=None,
        features=rows,
    )._replace(**changes)  # type: ignore[arg-type]


def called(servers: tuple[AssignedServer, ...], name: str) -> str:
    """Return the id of the server to which a call of this tool is sent, or the name of the error if it is refused."""
    try:
        found = resolve_name(servers, name)
        return found.assigned.id if isinstance(found, Resolved) else found.id
    except (OutOfScope, Refusal, UnknownFeature) as refusal:
        return type(refusal).__name__


def listed(servers: tuple[AssignedServer, ...], name: str) -> str:
    """Return the id of the server whose tool is listed under this name, or "UnknownFeature" if none is."""
    found = server_of(servers, name)
    return found.id if found else "UnknownFeature"


def row(name: str, exposed: str) -> tuple[object, ...]:
    return (FeatureRow(name, exposed, True, None, "approved", None, None, "tool"),)


def test_lists_and_calls_agree_in_every_order_whatever_was_listed_before() -> None:
    aliases = {"plain": "", "docs": "docs", "github": "github"}
    for name, known in product(NAMES, product([False, True], repeat=3)):
        servers = [
            assigned(slug, alias, row(name.removeprefix(f"{alias}__"), name) if knows else ())
            for (slug, alias), knows in zip(aliases.items(), known, strict=True)
        ]
        orders = list(permutations(servers))
        found = {listed(order, name) for order in orders} | {called(order, name) for order in orders}
        assert len(found) == 1, (name, known, found)


def test_a_server_that_may_not_be_used_leaves_its_names_to_no_other() -> None:
    exposed = exposed_name("docs", "it")
    for changes, told in (
        ({"in_scope": False}, "OutOfScope"),
        ({"enabled": False}, "Refusal"),
        ({"policy": "block_all"}, "Refusal"),
    ):
        servers = (assigned("docs", "docs", row("it", "it"), **changes), assigned("plain", "", row(exposed, exposed)))
        assert {called(order, exposed) for order in permutations(servers)} == {told}
