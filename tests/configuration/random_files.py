"""Generate random configuration files, and list the objects of an exported file for comparison with a plan."""

from random import Random
from typing import Any

import yaml

TOOLS = [f"tool_{number}" for number in range(6)]
SLUGS = ["alpha", "beta", "gamma", "delta", "epsilon"]
TEAMS = ["Engineering", "Sales", "Élan", "on", "12"]
PERMISSIONS = ["logs:read", "gateways:read", "servers:read", "hosts:read"]
URL = "https://93.184.216.34/mcp"  # An address, so that no name is resolved.
CONDITIONS = ["", "args.amount > 500", "now.hour < 8\n|| now.hour >= 18\n", ' args.to == "a: b #c" ']
TEXTS = ["", "One line", "Two\nlines", "Two\r\nlines: 'quoted' # ☃", " yes ", "~"]

type Flat = dict[tuple[str, ...], dict[str, Any]]


def random_file(random: Random, *, complete: bool = False) -> dict[str, Any]:
    """Return the data of a random file. If `complete` is false, some lists and fields can be missing."""
    teams = _some(random, TEAMS)
    servers = [_server(random, slug) for slug in _some(random, SLUGS)]
    gateways = [_gateway(random, slug, teams, servers) for slug in _some(random, SLUGS)]
    if not complete:
        for gateway in gateways:
            _keep_aliases(gateway)
    data_slugs = [one["slug"] for one in servers], [one["slug"] for one in gateways]
    data: dict[str, Any] = {
        "version": 1,
        "workspace": {
            "calls_per_minute": random.choice([None, 60, 1000]),
            "log_retention_days": random.randint(90, 95),
            "zone": random.choice(["UTC", "Europe/Berlin"]),
        },
        "teams": [{"name": name} for name in teams],
        "roles": [{"name": f"Role {name}", **_role(random)} for name in _some(random, SLUGS)],
        "servers": servers,
        "gateways": gateways,
        "rules": [_rule(random, word, teams, data_slugs) for word in _some(random, SLUGS)],
    }
    if complete:
        return data
    kept = {name: value for name, value in data.items() if name != "workspace" or random.random() < 0.5}
    return kept | {"gateways": [_shortened(random, one) for one in gateways]}


def _some(random: Random, values: list[str]) -> list[str]:
    return random.sample(values, random.randint(0, len(values)))


def _role(random: Random) -> dict[str, Any]:
    return {"capabilities": _some(random, PERMISSIONS), "uses_gateways": random.random() < 0.5}


def _server(random: Random, slug: str) -> dict[str, Any]:
    return {
        "slug": slug,
        "name": f"Server {slug} {random.randint(1, 3)}",
        "url": f"{URL}/{random.randint(1, 3)}",
        "enabled": random.random() < 0.7,
        "auth_type": random.choice(["none", "bearer"]),
        "timeout_seconds": random.choice([10, 30]),
        "key_help": random.choice(["", "Ask the team", "#1: yes"]),
    }


def _gateway(random: Random, slug: str, teams: list[str], servers: list[dict[str, Any]]) -> dict[str, Any]:
    chosen = _some(random, teams)
    placed = random.sample(servers, random.randint(0, len(servers)))
    return {
        "slug": slug,
        "name": f"Gateway {slug} {random.randint(1, 3)}",
        "description": random.choice(TEXTS),
        "enabled": random.random() < 0.7,
        "reach": "teams" if chosen else "everyone",
        "teams": chosen,
        "hosts_allowed": random.choice(["all", "listed"]),
        "calls_per_minute": random.choice([None, 5]),
        "servers": [_assignment(random, server, is_sole=len(placed) == 1) for server in placed],
    }


def _assignment(random: Random, server: dict[str, Any], *, is_sole: bool) -> dict[str, Any]:
    slug, policy = server["slug"], random.choice(["allow_all", "selected", "block_all"])
    aliases = [slug, f"{slug}-x"] + [""] * is_sole
    return {
        "server": slug,
        "alias": random.choice(aliases),
        "enabled": random.random() < 0.7,
        "identity_scheme": "none" if server["auth_type"] == "none" else "per_user",
        "tool_policy": policy,
        "enabled_tools" if policy == "selected" else "disabled_tools": _some(random, TOOLS),
    }


def _keep_aliases(gateway: dict[str, Any]) -> None:
    """Give each server of the gateway an alias that is the same in all random files.

    A file that changes an alias would also need `moved`.
    """
    for one in gateway["servers"]:
        one["alias"] = one["server"] + "-x" * (len(gateway["slug"] + one["server"]) % 2)


def _rule(random: Random, word: str, teams: list[str], slugs: tuple[list[str], list[str]]) -> dict[str, Any]:
    servers, gateways = slugs
    effect = random.choice(["refuse", "hold", "label"])
    return {
        "name": f"Rule {word}",
        "gateway": random.choice(["", *gateways]),
        "servers": _some(random, servers),
        "tools": _some(random, ["docs__*", "a?", "*_get_*"]),
        "tool_effect": random.choice(["", "read_only", "destructive"]),
        "when": random.choice(CONDITIONS),
        "effect": effect,
        "text": random.choice(["large", "other"]),
        "mode": random.choice(["watch", "on"]),
        "enabled": random.random() < 0.7,
        **(_held(random, teams) if effect == "hold" else {}),
    }


def _held(random: Random, teams: list[str]) -> dict[str, Any]:
    approvers = random.choice(["anybody", "person", *["team"] * bool(teams)])
    return {
        "approvers": approvers,
        "approver_team": random.choice(teams) if approvers == "team" else "",
        "somebody_else": approvers != "person" and random.random() < 0.5,
        "hold_minutes": random.choice([1, 15, 60]),
    }


def _shortened(random: Random, gateway: dict[str, Any]) -> dict[str, Any]:
    """Return the gateway without some of the fields and lists that can be left out."""
    together = {"slug", "name", "reach", "teams"}
    return {name: value for name, value in gateway.items() if name in together or random.random() < 0.7}


def flat(text: str) -> Flat:
    """Return the objects of an exported file by kind and key, each with its fields."""
    data = yaml.safe_load(text)
    found: Flat = {}
    found["workspace",] = data["workspace"]
    for kind in ("teams", "roles", "rules"):
        found |= {(kind, one["name"]): one for one in data[kind]}
    found |= {("servers", one["slug"]): one for one in data["servers"]}
    for gateway in data["gateways"]:
        for one in gateway.pop("servers"):
            found["gateways.servers", gateway["slug"], one["alias"]] = one
        found["gateways", gateway["slug"]] = gateway
    return found
