"""The parts of uvicorn that our HTTP protocols override have not changed."""

import hashlib
import inspect

import pytest
from uvicorn.protocols.http import httptools_impl

pytestmark = pytest.mark.full

READ = {
    "HttpToolsProtocol.__init__": "4f0899941034",
    "HttpToolsProtocol.connection_made": "6efb565ff3d3",
    "HttpToolsProtocol.connection_lost": "c91a4c9bf2e2",
    "HttpToolsProtocol.data_received": "010a7ae59a5d",
    "HttpToolsProtocol.on_message_begin": "96d377fdc7c2",
    "HttpToolsProtocol.on_headers_complete": "1ea8589acfad",
    "HttpToolsProtocol.on_body": "dba9c32aeba3",
    "HttpToolsProtocol.on_message_complete": "1fbad42dc31f",
    "HttpToolsProtocol.on_response_complete": "64e254f28e38",
    "HttpToolsProtocol.send_400_response": "ae5a4a3782b6",
    "HttpToolsProtocol._start_asgi_task": "9c08c2571ae9",
    "HttpToolsProtocol._unset_keepalive_if_required": "00a6a4e47214",
    "HttpToolsProtocol.shutdown": "d7351fa33f00",
    "RequestResponseCycle.__init__": "4d2f220910c3",
    "RequestResponseCycle.run_asgi": "0f33f2449a44",
    "RequestResponseCycle.send": "abdd8601b326",
    "RequestResponseCycle.receive": "8124ae006be7",
}


def test_uvicorn_is_the_one_our_http_protocols_were_written_against(subtests: pytest.Subtests) -> None:
    for name, known in READ.items():
        with subtests.test(name):
            owner, _, method = name.partition(".")
            function = getattr(getattr(httptools_impl, owner), method, None)
            assert function is not None, f"uvicorn has no {name} any more: gatewayadmin/serving/ overrides or calls it."
            digest = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]
            assert digest == known, (
                f"uvicorn changed {name}. Compare it with gatewayadmin/serving/http_protocol.py, "
                f"run tests/gatewayadmin/test_mcp_http_protocol.py, then write {digest} here. "
                "GATEWAY_FAST_HTTP=0 leaves the fast path out meanwhile."
            )
