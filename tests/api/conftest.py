"""The owner of the running workspace, as a program."""

from collections.abc import Iterator

import httpx
import pytest

from tests.api.browser import signed_in
from tests.workspace import OWNER, Serve


@pytest.fixture
def owner(live: Serve) -> Iterator[httpx.Client]:
    with signed_in(live, OWNER) as browser:
        yield browser
