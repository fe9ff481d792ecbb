"""The server's HTTP protocols."""

from typing import cast

import pytest

from gatewayadmin.serving.http_protocol import LimitedHttpProtocol, McpHttpProtocol


@pytest.fixture(params=[McpHttpProtocol, LimitedHttpProtocol], ids=["fast", "plain"])
def http_protocol(request: pytest.FixtureRequest) -> type[LimitedHttpProtocol]:
    """Return the protocol class for GATEWAY_FAST_HTTP on, then for off."""
    return cast(type[LimitedHttpProtocol], request.param)
