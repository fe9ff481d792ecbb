"""Shared storage of container images, so that each layer is built only once."""

from collections.abc import Iterator

import pytest

from tests.deploy.containers import Machine, machine
from tests.deploy.images import Images, storage


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    """The storage of container images."""
    with storage() as built:
        yield built


@pytest.fixture(scope="session")
def host(images: Images) -> Iterator[Machine]:
    """A machine on which no containers run yet."""
    images.add_standins()
    with machine(images) as running:
        yield running
