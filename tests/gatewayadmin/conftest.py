"""The HTTP protocol classes of `serve`."""

from typing import cast

import pytest

from gatewayadmin.serving.http_protocol import LimitedHttpProtocol, McpHttpProtocol


@pytest.fixture(params=[McpHttpProtocol, LimitedHttpProtocol], ids=["fast", "plain"])
def http_protocol(request: pytest.FixtureRequest) -> type[LimitedHttpProtocol]:
    """Return the HTTP protocol class. Each test runs twice: with the class for GATEWAY_FAST_HTTP, and the plain one."""
    return cast(type[LimitedHttpProtocol], request.param)
