"""The published schema and the reference are those of the code, and the schema accepts what an export writes."""

from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from capabilities import Capability
from configuration.export import export
from configuration.schema import schema
from tests import make
from tests.configuration.published import texts


@pytest.mark.parametrize("number", [0, 1])
def test_the_published_text_is_that_of_the_code(number: int) -> None:
    path, text = [*texts().items()][number]

    assert Path(path).read_text() == text, "Run `make lists`."


@pytest.mark.full
@pytest.mark.django_db
def test_the_schema_accepts_an_export_for_another_validator() -> None:
    make.built_in_roles()
    make.gateway(make.server())

    jsonschema_rs.Draft202012Validator(schema()).validate(yaml.safe_load(export(make.user(*Capability))))
