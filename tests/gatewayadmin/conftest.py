"""The HTTP protocol classes of `serve`."""

from typing import cast

import pytest

from gatewayadmin.serving.http_protocol import LimitedHttpProtocol, McpHttpProtocol


@pytest.fixture(params=[McpHttpProtocol, LimitedHttpProtocol], ids=["fast", "plain"])
def http_protocol(request: pytest.FixtureRequest) -> type[LimitedHttpProtocol]:
    """Return an HTTP protocol class. Each test runs twice: with GATEWAY_FAST_HTTP's class, and with the plain class."""
    return cast(type[LimitedHttpProtocol], request.param)
