"""In random worlds, the access report matches the gateway's decisions, and the history matches the current tables."""

from itertools import product
from typing import Any

import pytest
from django.utils import timezone

from access.in_force import InForce, in_force_at, in_force_now
from access.report import AccessReport, Asked
from auditlog.why import Question, current_decision
from gateways.models import Gateway
from hosts.models import Host
from proxy.access.features import Named
from tests import make
from tests.proxy.test_decision_model import Painter, Skeleton, skeleton
from wire.mcp import TOOL

pytestmark = pytest.mark.full

# Reasons that concern neither the person nor the tool: the agent, the credential, and switches of gateways.
OTHERS = {"not_connected", "gateway_disabled", "host_not_allowed_here"}
IDENTITY = "identity_"
WORLDS = 200


def reasons(host: Host, user: Any, gateway: Gateway, tool: str = "") -> set[str]:
    """Return the reasons why the gateway refuses a call of `tool` or, if `tool` is empty, any use of the gateway.

    Return only reasons that concern the person or the tool.
    """
    decision = current_decision(Question(host, user, gateway, Named(TOOL, tool) if tool else None))
    found = {each.reason for each in decision.verdict.obstacles} - OTHERS
    return {reason for reason in found if not reason.startswith(IDENTITY)}


def decided(bones: Skeleton, host: Host) -> tuple[set[str], set[str]]:
    """Return the keys of the gateway lines and of the tool lines that the report must have."""
    gateways, tools = set(), set()
    for user, gateway in product(bones.rows["User"], bones.rows["Gateway"]):
        if not reasons(host, user, gateway):
            gateways.add(f"{user.pk}:{gateway.pk}")
    for user, tool in product(bones.rows["User"], bones.rows["Tool"]):
        gateway = tool.assignment.gateway
        if f"{user.pk}:{gateway.pk}" in gateways and not reasons(host, user, gateway, tool.exposed_name):
            tools.add(f"{user.pk}:{gateway.pk}:{tool.pk}")
    return gateways, tools


def told(known: InForce) -> dict[str, Any]:
    """Return the parts of `known` on which the current tables and the history must agree."""
    members = {pk: teams for pk, teams in known.teams_of.items() if teams and pk in known.people}
    return {
        "people": known.people,
        "gateways": known.gateways,
        "open_to": known.open_to,
        "members": members,
        "use_all": {*known.use_all} & {*known.people},
        "opened": known.opened,
        "tool_grants": {*known.tool_grants},
    }


def test_the_report_has_the_lines_that_the_statement_allows(transactional_db: None) -> None:
    bones = skeleton()
    painter, host, seen = Painter(bones), make.agent(by=make.user()), [0, 0]

    for seed in range(WORLDS):
        painter.paint(bones.world(seed))
        gateways, tools = decided(bones, host)
        people, places = ([row.pk for row in bones.rows[name]] for name in ("User", "Gateway"))
        report = [*AccessReport(Asked(people=people, gateways=places))]
        by_tool = AccessReport(Asked(people=people, tool="known"))

        assert {line.key for line in report} == gateways, seed
        assert {line.key for line in by_tool} == tools, seed
        assert len(by_tool) == len(tools)
        assert all(line.sources for line in report), seed
        for line in report:
            assert line.tools == sum(key.startswith(line.key) for key in tools), (seed, line.key)
        assert told(in_force_at(timezone.now())) == told(in_force_now()), seed
        seen = [seen[0] + len(gateways), seen[1] + len(tools)]

    assert min(seen) > WORLDS // 4
