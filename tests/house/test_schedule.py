"""Each test is sent to one process, and in `make test` few processes have a workspace for those that share it."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.schedule import Schedule, shares_live

LIVE = (
    *("tests/browser/test_logs.py", "tests/browser/test_pages.py", "tests/clients/test_everything.py"),
    *("tests/api/test_live.py", "tests/running/test_metrics.py"),
)
OTHERS = (
    *("tests/wire/test_guard.py", "tests/proxy/test_lists.py", "tests/tokens/test_list.py"),
    *("tests/running/test_scale_out.py", "tests/ui/test_headers.py", "tests/oauth/test_documents.py"),
)


class Node:
    """A process as the scheduler knows it, and what it was sent."""

    shutting_down = False

    def __init__(self, number: int, collection: list[str]) -> None:
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.collection, self.sent = collection, list[str]()

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += [self.collection[index] for index in indices]

    def shutdown(self) -> None:
        self.shutting_down = True


def run(processes: int, chosen: str) -> list[Node]:
    """The processes after a run in which each did a test in its turn."""
    option = SimpleNamespace(markexpr=chosen, loadscopereorder=True)
    config = SimpleNamespace(option=option, getvalue=lambda name: ["popen"] * processes)
    collection = [f"{path}::test_{number}" for path in (*LIVE, *OTHERS) for number in range(4)]
    schedule, nodes = Schedule(cast("Any", config)), [Node(number, collection) for number in range(processes)]
    for node in nodes:
        schedule.add_node(cast("Any", node))
        schedule.add_node_collection(cast("Any", node), collection)
    schedule.schedule()
    done = dict.fromkeys(nodes, 0)
    while any(done[node] < len(node.sent) for node in nodes):
        for node in nodes:
            if done[node] < len(node.sent):
                schedule.mark_test_complete(cast("Any", node), collection.index(node.sent[done[node]]))
                done[node] += 1
    assert sorted(test for node in nodes for test in node.sent) == sorted(collection)
    return nodes


def with_live(nodes: list[Node]) -> int:
    return sum(any(shares_live(test.partition("::")[0]) for test in node.sent) for node in nodes)


def test_the_modules_of_this_test_share_a_workspace_or_do_not() -> None:
    assert all(map(shares_live, LIVE))
    assert not any(map(shares_live, OTHERS))


@pytest.mark.parametrize(("processes", "most"), [(1, 1), (2, 1), (3, 1), (6, 2)])
def test_few_processes_have_a_workspace_while_others_have_something_to_do(processes: int, most: int) -> None:
    nodes = run(processes, "not full")

    # Of what is left at the end, whoever is free takes some.
    assert all(any(not shares_live(test.partition("::")[0]) for test in node.sent) for node in nodes[most:])
    assert with_live([node for node in nodes if shares_live(node.sent[0].partition("::")[0])]) == most


def test_when_everything_runs_any_process_may_have_one() -> None:
    nodes = run(3, "")

    assert [shares_live(node.sent[0].partition("::")[0]) for node in nodes] == [True] * 3
