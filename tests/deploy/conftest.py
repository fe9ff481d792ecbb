"""Shared storage of container images, so that each layer is built only once."""

from collections.abc import Iterator

import pytest

from tests.deploy.images import Images, storage


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    """The storage of container images."""
    with storage() as built:
        yield built
