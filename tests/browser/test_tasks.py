"""Eight tasks take at most 29 clicks and 5 fields together, and work by keyboard. `-rP` prints the counts."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests import secrecy, workspace
from tests.browser.fixtures import Open, cookies_of_owner
from tests.browser.tasks import EIGHT, MORE, ROWS, Keys, Mouse, Stage, Task
from tests.make import unique
from tests.upstreams import App, Upstream
from tests.workspace import Serve

pytestmark = pytest.mark.full

MOST_CLICKS, MOST_FIELDS = 29, 5  # For all eight tasks together.


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A workspace of this module only, because gateways of other tests would add steps to the tasks."""
    served = workspace.new(tmp_path_factory.mktemp("tasks"), "tasks")
    with secrecy.keeping_secrets(served):
        yield served


@pytest.fixture(scope="module")
def signed_in(browser: Browser, live: Serve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cookies_of_owner(browser, live, tmp_path_factory.mktemp("browser"))


@pytest.fixture
def set_stage(live: Serve, page: Page, run: Callable[[App], Upstream], open_browser: Open) -> Callable[[], Stage]:
    """Return a function that creates a task's rows and opens the dashboard."""

    def made() -> Stage:
        name = unique("task")
        rows = json.loads(live.manage("shell", "--verbosity", "0", "-c", ROWS.format(name=name)))
        page.goto(f"{live.url}/")
        return Stage(live, f"0 {name}", rows["token"], run, lambda: open_browser().new_page())

    return made


def test_eight_tasks_take_few_clicks_and_fields(set_stage: Callable[[], Stage], page: Page) -> None:
    counts = {task: counted(task, Mouse(page), set_stage()) for task in (*EIGHT, *MORE)}
    all_clicks, all_fields = (sum(counts[task][n] for task in EIGHT) for n in (0, 1))
    lines = [(named(task), *counts[task]) for task in (*EIGHT, *MORE)]
    lines.insert(len(EIGHT), ("All eight", all_clicks, all_fields))
    sys.stdout.writelines(f"{name:<48} {clicks:>2} clicks, {fields} fields\n" for name, clicks, fields in lines)

    assert all_clicks <= MOST_CLICKS
    assert all_fields <= MOST_FIELDS
    assert {task: counts[task] for task in MORE} == MORE


def counted(task: Task, mouse: Mouse, stage: Stage) -> tuple[int, int]:
    """Do the task, and return the number of clicks and of filled fields."""
    task(mouse, stage)
    return mouse.clicks, mouse.fields


def named(task: Task) -> str:
    return task.__name__.replace("_", " ").capitalize()


@pytest.mark.parametrize("task", [*EIGHT, *MORE], ids=lambda task: str(task.__name__))
def test_a_task_is_done_by_keyboard_alone(task: Task, set_stage: Callable[[], Stage], page: Page) -> None:
    task(Keys(page), set_stage())
