"""The published schema and reference match the code, and the schema accepts exported files."""

from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from capabilities import Capability
from configuration.export import export
from configuration.schema import schema
from tests import make
from tests.docs.published import texts


def test_the_published_texts_are_those_of_the_code() -> None:
    for path, text in texts().items():
        assert Path(path).read_text() == text, "Run `make lists`."


@pytest.mark.full
@pytest.mark.django_db
def test_the_schema_accepts_an_export_for_another_validator() -> None:
    make.built_in_roles()
    make.gateway(make.server())

    jsonschema_rs.Draft202012Validator(schema()).validate(yaml.safe_load(export(make.user(*Capability))))
