"""The server's HTTP protocols."""

from typing import cast

import pytest

from gatewayadmin.serving.http_protocol import LimitedHttpProtocol, McpHttpProtocol


@pytest.fixture(params=[McpHttpProtocol, LimitedHttpProtocol], ids=["fast", "plain"])
def http_protocol(request: pytest.FixtureRequest) -> type[LimitedHttpProtocol]:
    """Return the HTTP protocol class. Tests run twice: with GATEWAY_FAST_HTTP on, and with it off."""
    return cast(type[LimitedHttpProtocol], request.param)
