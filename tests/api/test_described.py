"""The API description documents every operation, field and example."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from gatewayadmin.rest.openapi import description

LINT = Path(__file__).parent / "lint"
CHOICES = "* `"  # The beginning of drf-spectacular's generated lists of choices, which do not explain the values.


def operations() -> Iterator[dict[str, Any]]:
    for item in description()["paths"].values():
        yield from item.values()


def says_nothing(described: dict[str, Any]) -> bool:
    return str(described.get("description", CHOICES)).startswith(CHOICES)


def test_every_object_member_and_parameter_says_what_it_is() -> None:
    undescribed = [
        f"{name}.{member}"
        for name, schema in description()["components"]["schemas"].items()
        for member, described in {"": schema, **schema.get("properties", {})}.items()
        if says_nothing(described)
    ]

    undescribed += [
        f"{operation['operationId']} {parameter['name']}"
        for operation in operations()
        for parameter in operation.get("parameters", ())
        if says_nothing(parameter)
    ]

    assert undescribed == []


def test_every_operation_says_what_it_does_in_words_of_its_own() -> None:
    summaries = [operation["summary"] for operation in operations()]

    assert all(" " in one for one in summaries)
    # Two methods may have one summary: DELETE is an alias of a POST, or has the same effect.
    assert {one for one in summaries if summaries.count(one) > 1} == {"Revoke an API key", "Revoke an API access token"}
    assert all(operation["description"] for operation in operations())


def contents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name such as "server_create 201" and the described content of each JSON request body and answer."""
    for operation in operations():
        said = {"body": operation.get("requestBody", {}), **operation["responses"]}
        for status, each in said.items():
            if content := each.get("content", {}).get("application/json"):
                yield f"{operation['operationId']} {status}", content


@pytest.mark.full
def test_every_example_is_right() -> None:
    components = {"components": description()["components"]}
    wrong = {}
    for name, content in contents():
        examples = [one["value"] for one in content.get("examples", {}).values()]
        validator = jsonschema_rs.Draft202012Validator(content["schema"] | components)
        if errors := [str(error.message) for example in examples for error in validator.iter_errors(example)]:
            wrong[name] = errors

    assert wrong == {}


def test_every_refusal_is_shown_with_its_code() -> None:
    for operation in operations():
        for status, response in operation["responses"].items():
            if status.startswith("4"):
                examples = response["content"]["application/json"]["examples"].values()
                assert all(example["value"]["code"] for example in examples), (operation["operationId"], status)
                assert examples, (operation["operationId"], status)


@pytest.mark.full
def test_the_description_is_clean_to_a_linter_of_openapi(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    assert npm, "npm is needed to lint the description; install Node 20 or newer."
    for name in ("package.json", "package-lock.json", ".spectral.yaml"):
        shutil.copy(LINT / name, tmp_path)
    (tmp_path / "openapi.json").write_text(json.dumps(description()))
    install = [npm, "ci", "--no-progress", "--ignore-scripts"]
    subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=300, check=True)

    lint = [str(tmp_path / "node_modules/.bin/spectral"), "lint", "openapi.json", "--fail-severity=hint"]
    done = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
