"""The migrated tables are kept for the next test run, until something that they depend on changes."""

from datetime import date
from pathlib import Path

import pytest

from tests.cluster import ROOT, state_of_the_code

TODAY = date(2026, 3, 1)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in {
        "app/__init__.py": "",
        "app/migrations/0001_initial.py": "first",
        "app/rules.sql": "SELECT 1",
        "requirements.lock": "django==6",
        "tests/__init__.py": "",
        "tests/test_app.py": "a test",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_changed_migrations_and_another_day_make_them_run_again_and_a_test_does_not(checkout: Path) -> None:
    before = state_of_the_code(checkout, TODAY)
    (checkout / "tests" / "test_app.py").write_text("changed")
    assert state_of_the_code(checkout, TODAY) == before
    assert state_of_the_code(checkout, date(2026, 3, 2)) != before

    states = [before]
    migrations = ("app/migrations/0001_initial.py", "app/migrations/0002_more.py")
    for path in (*migrations, "app/rules.sql", "requirements.lock"):
        (checkout / path).write_text("changed")
        states.append(state_of_the_code(checkout, TODAY))
    assert len({*states}) == 5


def test_the_migrations_of_this_checkout_count(monkeypatch: pytest.MonkeyPatch) -> None:
    read, text_of = set[Path](), Path.read_bytes

    def noted(path: Path) -> bytes:
        read.add(path)
        return text_of(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    state_of_the_code(ROOT, TODAY)

    migrations = set(ROOT.glob("*/migrations/*.py"))
    assert migrations
    assert migrations <= read
