"""Each fenced block in the documents has an entry here: the test that runs it, or the reason why no test can.

A block without an entry fails the test, and so does an entry without its block or its test.
"""

import ast
import configparser
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

import yaml
from django.core.management import get_commands, load_command_class
from django.core.management.base import CommandParser

from gatewayadmin.config import environment
from tests.docs.pages import PAGES, ROOT

BLOCK = re.compile(r"^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)

# The test that runs each block: the page, the beginning of the block, and the test.
RUN_BY = (
    ("README.md", "make run", "docs/test_readme.py::test_the_first_call_works_as_printed"),
    ("README.md", "issued=", "docs/test_readme.py::test_the_first_call_works_as_printed"),
    *(
        (
            "docs/quickstart.md",
            begin,
            "docs/test_quickstart.py::test_an_agent_calls_until_it_is_revoked_as_the_page_says",
        )
        for begin in ("printf 'Token: '", 'curl -sS -X POST "$GATEWAY_URL"', "curl -sS -o /dev/null")
    ),
    *(
        ("docs/quickstart.md", begin, "docs/test_quickstart.py::test_three_servers_and_three_people_as_the_page_says")
        for begin in ("GATEWAY_PRIVATE_UPSTREAMS", "PORT=3001", "from datetime", "python3 -m venv")
    ),
    *(
        ("docs/reference/rest-api.md", begin, "docs/test_automate.py::test_the_script_works_as_printed")
        for begin in (
            *("export GATEWAY=", "set -euo pipefail", "SERVER=", "NEW_GATEWAY=", "HOST=", "curl --silent", "api POST"),
            *("PERSON=", "for thing in"),
        )
    ),
    (
        "docs/how-to/back-up.md",
        "umask 077\ndocker compose exec",
        "deploy/test_containers.py::test_compose_starts_serves_and_is_upgraded_as_printed",
    ),
    (
        "docs/how-to/back-up.md",
        "docker compose stop nginx gateway",
        "deploy/test_containers.py::test_compose_starts_serves_and_is_upgraded_as_printed",
    ),
    ("docs/how-to/back-up.md", "umask 077\ntar", "docs/test_how_tos.py::test_a_backup_is_restored_elsewhere"),
    ("docs/how-to/back-up.md", "mkdir -p", "docs/test_how_tos.py::test_a_backup_is_restored_elsewhere"),
    *(
        (
            "docs/how-to/back-up.md",
            begin,
            "running/test_restore.py::test_a_backup_made_under_load_is_restored_elsewhere",
        )
        for begin in ("umask 077\npg_dump", "pg_restore --exit", ".venv/bin/python manage.py verify_log")
    ),
    *(
        ("docs/how-to/back-up.md", begin, "running/test_key_rotation.py::test_the_keys_are_rotated_under_load")
        for begin in ("encryption=$(cat", "for file in", ".venv/bin/python manage.py reencrypt", "IFS=, read")
    ),
    *(
        ("docs/how-to/configuration-as-code.md", begin, f"configuration/test_commands.py::{test}")
        for begin, test in (
            (".venv/bin/python manage.py export", "test_a_workspace_is_exported_planned_and_applied_as_printed"),
            (".venv/bin/python manage.py plan", "test_a_workspace_is_exported_planned_and_applied_as_printed"),
            (".venv/bin/python manage.py apply", "test_a_workspace_is_exported_planned_and_applied_as_printed"),
            ("# yaml-language-server", "test_the_printed_files_are_right"),
            ("version: 1\nsource: platform-team\nservers", "test_the_printed_files_are_right"),
            ("teams:", "test_the_printed_files_are_right"),
        )
    ),
    *(
        ("docs/how-to/programs.md", begin, "runner/test_documents.py::test_the_printed_file_and_commands_are_right")
        for begin in ("version: 1", ".venv/bin/python -m runner", "GATEWAY_RUNNER_SECRET=")
    ),
    (
        "docs/how-to/connect-a-client.md",
        ".venv/bin/python manage.py doctor",
        "docs/test_how_tos.py::test_the_doctor_runs_as_printed",
    ),
    *(
        ("docs/how-to/deploy.md", begin, "docs/test_deploy.py::test_two_roles_as_printed")
        for begin in (
            *(
                "CREATE ROLE gateway ",
                "CREATE ROLE gateway_run",
                "export DATABASE_URL",
                "DATABASE_URL=",
            ),
            "export GATEWAY_SECRET_KEY",
        )
    ),
    (
        "docs/how-to/deploy.md",
        "export DATABASE_URL=postgresql://gateway:secret@db.internal:5432/gateway\nexport GATEWAY_SECRET",
        "running/test_move_database.py::test_all_rows_or_none_are_moved_as_printed",
    ),
    *(
        ("docs/how-to/deploy.md", begin, f"docs/test_configurations.py::{test}")
        for begin, test in (
            ("make install", "test_a_checkout_is_installed_and_serves_by_the_commands_of_the_page"),
            ("export GATEWAY_PUBLIC_URL", "test_behind_the_nginx_of_the_page_the_gateway_knows_its_name_and_who_calls"),
            ("server {", "test_behind_the_nginx_of_the_page_the_gateway_knows_its_name_and_who_calls"),
        )
    ),
    (
        "docs/how-to/scale-out.md",
        "max_connections",
        "docs/test_configurations.py::test_postgresql_takes_the_settings",
    ),
    *(
        (page, begin, "docs/test_configurations.py::test_prometheus_scrapes_the_gateway_as_printed")
        for page, begin in (
            ("docs/how-to/monitor.md", "scrape_configs:"),
            ("docs/how-to/monitor.md", "receivers:"),
        )
    ),
    (
        "docs/how-to/upgrade.md",
        ".venv/bin/python manage.py migrate",
        "running/test_upgrade.py::test_an_index_whose_maker_is_killed_is_made_by_the_gateway",
    ),
    *(
        ("docs/how-to/scale-out.md", begin, "running/test_scale_out.py::test_pages_rest_and_chores_work")
        for begin in ("export DATABASE_URL=postgresql://gateway:secret@pooler", "ALTER ROLE", "[databases]")
    ),
    *(
        ("docs/how-to/scale-out.md", begin, f"running/test_scale_out.py::{test}")
        for begin, test in (
            ("export DATABASE_READ_URL", "test_logs_are_read_from_a_replica_whatever_becomes_of_it"),
            ('export DATABASE_URL="', "test_calls_fail_closed_when_the_primary_is_lost"),
        )
    ),
    (
        "docs/how-to/scale-out.md",
        ".venv/bin/python manage.py check",
        "running/test_scale_out.py::test_pages_rest_and_chores_work",
    ),
    *(
        (
            "docs/how-to/people-and-roles.md",
            f".venv/bin/python manage.py {command}",
            "docs/test_how_tos.py::test_people_are_invited",
        )
        for command in ("invite", "rescue", "password_link")
    ),
    (
        "docs/how-to/people-and-roles.md",
        "GATEWAY_PUBLIC_URL",
        "docs/test_deploy.py::test_other_machines_are_let_in_as_printed",
    ),
    (
        "docs/how-to/agents-and-tokens.md",
        "curl --silent --fail",
        "docs/test_how_tos.py::test_a_job_rotates_its_own_token_as_printed",
    ),
    *(
        ("docs/how-to/answer-an-auditor.md", begin, "docs/test_how_tos.py::test_an_auditor_is_answered_as_printed")
        for begin in ("export GATEWAY", "set -euo", "all ", "curl --silent")
    ),
    (
        "docs/how-to/add-a-server.md",
        "npm install",
        "docs/test_how_tos.py::test_the_bridge_makes_a_stdio_server_callable",
    ),
    (
        "docs/how-to/add-a-server.md",
        "mcp-bridge/node_modules/.bin/supergateway",
        "docs/test_how_tos.py::test_the_bridge_makes_a_stdio_server_callable",
    ),
    *(
        ("docs/how-to/provision-people.md", begin, "docs/test_provision.py::test_the_script_works_as_printed")
        for begin in ("export GATEWAY", "set -euo", "ANN=", "TEAM=", "active()", "scim DELETE")
    ),
    *(
        (
            page,
            begin,
            "deploy/test_containers.py::test_compose_starts_serves_and_is_upgraded_as_printed",
        )
        for page, begin in (
            ("docs/how-to/deploy.md", "deploy/compose/make-secrets gateway.example.com"),
            ("docs/how-to/deploy.md", "0 3 * * *  cd"),
            ("docs/how-to/upgrade.md", "docker compose build"),
            ("docs/how-to/upgrade.md", "old="),
        )
    ),
    *(
        (
            "docs/how-to/deploy.md",
            f"docker build --file Containerfile {option}",
            f"deploy/test_containers.py::{test}",
        )
        for option, test in (
            ("--tag", "test_an_image_has_the_extras_it_was_built_with"),
            ("--build-arg EXTRAS", "test_an_image_has_the_extras_it_was_built_with"),
            ("--build-arg LOCK", "test_an_image_with_its_database_keeps_it_in_its_volume"),
        )
    ),
    *(
        (page, "kubectl", "deploy/test_kubectl.py::test_production_is_installed_and_upgraded_as_printed")
        for page in ("docs/how-to/kubernetes.md", "docs/how-to/upgrade.md")
    ),
    *(
        (
            "docs/reference/kubernetes.md",
            begin,
            "deploy/test_kubectl.py::test_an_overlay_is_changed_as_printed",
        )
        for begin in ("kubectl", "- target")
    ),
    (
        "docs/how-to/kubernetes.md",
        "deploy/compose/make-secrets\ncd",
        "deploy/test_kubectl.py::test_the_trial_is_installed_as_printed",
    ),
    (
        "docs/how-to/monitor.md",
        ".venv/bin/pip install",
        "running/test_tracing.py::test_calls_are_traced_as_the_page_says",
    ),
    ("docs/how-to/send-the-logs.md", "export GATEWAY_ARCHIVE", "sinks/test_archive.py::test_commands_as_printed"),
    (
        "docs/how-to/send-the-logs.md",
        ".venv/bin/python manage.py search_archive",
        "sinks/test_archive.py::test_commands_as_printed",
    ),
    *(
        (
            "docs/how-to/single-sign-on.md",
            begin,
            "docs/test_how_tos.py::test_an_identity_provider_is_asked_and_its_enforcement_ended_by_the_commands_as_printed",
        )
        for begin in ('curl -fsS "$ISSUER', ".venv/bin/python manage.py rescue")
    ),
    *(
        (
            "docs/how-to/single-sign-on.md",
            begin,
            "docs/test_how_tos.py::test_metadata_of_saml_are_fetched_as_printed",
        )
        for begin in ('curl -fsS "$GATEWAY', 'curl -fsS "$METADATA')
    ),
    (
        "docs/how-to/deploy.md",
        "export GATEWAY_OUTBOUND_PROXY",
        "running/test_outbound_proxy.py::test_everything_goes_out_through_the_proxy_as_printed",
    ),
    (
        "docs/how-to/send-the-logs.md",
        "curl -fsS -X POST",
        "docs/test_logs_elsewhere.py::test_a_sink_of_each_kind_is_made_as_printed",
    ),
    *(
        ("docs/how-to/answer-an-auditor.md", begin, "docs/test_logs_elsewhere.py::test_the_log_is_verified_as_printed")
        for begin in (".venv/bin/python manage.py verify_log --print", ".venv/bin/python manage.py verify_log --public")
    ),
    ("docs/how-to/send-the-logs.md", "import base64", "sinks/test_receivers.py::test_documented_check"),
    ("docs/how-to/read-the-log.md", "curl -fsS", "docs/test_how_tos.py::test_an_export_is_taken_as_printed"),
    (
        "docs/decisions/0026-operations-declare-themselves.md",
        "@operation",
        "docs/test_code.py::test_the_excerpt_of_an_operation_is_of_the_code",
    ),
    ("docs/explanation/architecture.md", "gatewayadmin/ ", "docs/test_code.py::test_the_folders_of_the_architecture"),
    (
        "docs/how-to/needs-attention.md",
        '{"type": "attention"',
        "attention/test_telling.py::test_a_webhook_has_the_fields_the_page_shows",
    ),
    ("docs/reference/rest-api.md", '{"detail":', "docs/test_rest_reference.py::test_a_name_of_nothing_is_answered"),
    ("docs/reference/protocol.md", "gwa_ +", "docs/test_reference.py::test_a_token_is_made_as_its_formula_says"),
    ("docs/reference/protocol.md", "\\b", "docs/test_reference.py::test_the_documented_pattern"),
    ("docs/reference/protocol.md", "from zlib", "docs/test_reference.py::test_the_documented_pattern"),
)
# Blocks that no test can run as printed: the page, the beginning, and the reason. They are parsed below.
PARSED = (
    ("CONTRIBUTING.md", "make setup", "these are the tests; make is asked for each and does not begin"),
    ("README.md", "flowchart", "a picture"),
    ("docs/concepts.md", "flowchart", "a picture"),
    ("docs/explanation/architecture.md", "people, REST, staff", "a picture"),
    ("docs/explanation/architecture.md", "GET /logs/", "a picture"),
    (
        "docs/how-to/deploy.md",
        "useradd",
        "it makes an account and a service of the machine; the unit is started elsewhere",
    ),
    ("docs/how-to/deploy.md", "systemctl daemon-reload", "systemd does not run where the tests do"),
    ("docs/how-to/configuration-as-code.md", "name: gateway", "it needs GitHub"),
    ("docs/how-to/configuration-as-code.md", "gateway:\n  image", "it needs GitLab"),
    ("docs/how-to/send-the-logs.md", "[sources.gateway]", "it needs Vector and Kafka"),
    ("docs/how-to/monitor.md", "scrape_configs:\n  - job_name: gateway-admin\n    authorization", "it needs a cluster"),
)


class Block(NamedTuple):
    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.strip().splitlines()[0]}"

    def is_of(self, page: str, beginning: str) -> bool:
        return self.page == page and self.text.strip().startswith(beginning)


def blocks() -> Iterator[Block]:
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for found in BLOCK.finditer(page.read_text()):
            yield Block(name, found["language"], found["text"])


BLOCKS = list(blocks())


def test_every_block_is_run_or_read_by_a_test_and_it_is_said_by_which() -> None:
    known = [(page, beginning) for page, beginning, _ in (*RUN_BY, *PARSED)]

    assert [str(block) for block in BLOCKS if not any(block.is_of(*entry) for entry in known)] == []
    assert [entry for entry in known if not any(block.is_of(*entry) for block in BLOCKS)] == []
    assert sum(page.read_text().count("\n```") for page in PAGES) == 2 * len(BLOCKS)  # The pattern finds every block.


def test_the_tests_that_run_blocks_are_there() -> None:
    for module, _, name in (test.partition("::") for _, _, test in RUN_BY):
        assert name.startswith("test_")
        assert f"def {name}" in (ROOT / "tests" / module).read_text(), name


def test_each_block_is_of_the_language_it_says() -> None:
    wrong = {}
    for block in BLOCKS:
        try:
            parse(block)
        except (SyntaxError, ValueError, yaml.YAMLError, configparser.Error, subprocess.CalledProcessError) as error:
            wrong[str(block)] = repr(error)

    assert wrong == {}


def parse(block: Block) -> None:  # noqa: C901  (a table)
    """Raise an error if a block does not parse in its language. Text, SQL, nginx and pictures are not checked."""
    match block.language:
        case "json":
            json.loads(block.text)
        case "python":
            ast.parse(block.text)
        case "yaml":
            yaml.safe_load(block.text)
        case "ini":
            configparser.ConfigParser(strict=True, interpolation=None).read_string(block.text)
        case "toml":
            tomllib.loads(block.text)
        case "bash":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, capture_output=True)
        case "crontab":
            *_, line = block.text.strip().splitlines()  # Variables are above it.
            times, command = re.split(r"  +", line, maxsplit=1)
            assert len(times.split()) == 5
            assert command
        case other if other not in {"", "sql", "nginx", "mermaid"}:
            raise ValueError(other)


def test_the_settings_a_document_names_exist() -> None:
    known = set(environment._seen) | {"GATEWAY_URL"}  # A variable of the tutorial.
    for page in PAGES:
        if page.name != "CHANGELOG.md":
            assert set(re.findall(r"\bGATEWAY_[A-Z]\w*", page.read_text())) - known <= OTHERS, page


# A variable of copied calls, and those of the runner.
OTHERS = {"GATEWAY_TOKEN", "GATEWAY_RUNNER_SECRET", "GATEWAY_RUNNER_SECRET_FILE"}
COMMAND = re.compile(r"(?:python )?manage\.py ([a-z_]+[^`\n|)]*)")


def test_every_command_a_document_names_takes_what_it_is_given() -> None:
    seen = set()
    for page in PAGES:
        if page.name != "CHANGELOG.md" and "decisions" not in page.parts:
            joined = page.read_text().replace("\\\n", " ")
            for line in COMMAND.findall(joined):
                seen.add(parsed(f"manage.py {line}"))

    assert {"serve", "migrate", "grant", "issue_token", "rescue", "invite", "doctor", "keys"} <= seen


def parsed(line: str) -> str:
    """Return the command's name, after the command's own parser has accepted the arguments."""
    line = line.partition("manage.py ")[2].partition(" #")[0]
    name, *words = shlex.split(line.rstrip(" .,;:").replace("[", "").replace("]", "").replace("...", ""))
    command = load_command_class(get_commands()[name], name)
    parser: CommandParser = command.create_parser("manage.py", name)
    options = {text for action in parser._actions for text in action.option_strings}
    for word in words:
        assert not word.startswith("--") or word.partition("=")[0] in options, line
    return name


def test_every_target_a_document_names_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) - {"help"}
    named = {
        name
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for name in re.findall(r"(?:`|^|&& |\d )make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }

    assert named <= targets


def test_make_knows_what_contributors_are_told_to_run_and_so_does_the_shell() -> None:
    (block,) = (block for block in BLOCKS if block.page == "CONTRIBUTING.md")
    for command in (line.partition("#")[0].split() for line in block.text.splitlines()):
        asked = ["make", "--dry-run", command[1]] if command[0] == "make" else ["bash", "-n", *command]
        subprocess.run(asked, cwd=ROOT, check=True, capture_output=True)
