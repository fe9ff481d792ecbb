"""Shared storage of images, so that each layer is built once."""

from collections.abc import Iterator

import pytest

from tests.deploy.images import Images, storage


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    """The storage of images."""
    with storage() as built:
        yield built
