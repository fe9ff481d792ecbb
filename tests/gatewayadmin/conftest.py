"""The server's HTTP protocols."""

from typing import cast

import pytest

from gatewayadmin.serving.head_limits import HeadLimits
from gatewayadmin.serving.mcp_http_protocol import McpHttpProtocol


@pytest.fixture(params=[McpHttpProtocol, HeadLimits], ids=["fast", "plain"])
def http_protocol(request: pytest.FixtureRequest) -> type[HeadLimits]:
    """What serves with GATEWAY_FAST_HTTP on, and with it off."""
    return cast(type[HeadLimits], request.param)
