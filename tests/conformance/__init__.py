"""The MCP conformance suite against servers of our own, alone and through the gateway.

`python -m tests.conformance` prints what each fixture server passes by itself, `--gateway` what it passes through the
gateway. `servers/` holds the fixtures, `suite.py` runs the suite, `header_proxy.py` brings it past the token.
"""
