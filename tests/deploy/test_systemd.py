"""The systemd unit: unlimited restarts, a valid file of settings, and the system calls that the gateway may use."""

from collections import defaultdict

from tests.docs.pages import ROOT, first_column

FOLDER = ROOT / "deploy" / "systemd"
UNIT = FOLDER / "gateway-admin.service"


def directives() -> dict[str, list[str]]:
    """Return the values of each directive of the unit file, in order."""
    found = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def test_a_start_without_the_database_is_tried_again_for_ever() -> None:
    unit = directives()
    assert unit["Restart"] == ["always"]
    assert int(unit["RestartSec"][0]) > 0
    assert unit["StartLimitIntervalSec"] == ["0"]


def test_the_settings_are_lines_that_systemd_and_the_gateway_understand() -> None:
    lines = [line for line in (FOLDER / "gateway-admin.env").read_text().splitlines() if not line.startswith("#")]
    documented = set(first_column(ROOT / "docs" / "reference" / "settings.md"))
    for line in lines:
        name, separator, value = line.partition("=")
        assert separator
        assert name in documented
        assert value
        assert not {"$", "`", '"', "'"} & {*value}


def test_processes_may_lower_their_own_priority() -> None:
    unit = directives()
    assert unit["SystemCallFilter"][0] == "@system-service"
    assert not any("@resources" in each for each in unit["SystemCallFilter"])
    assert unit["SystemCallErrorNumber"] == ["EPERM"]
