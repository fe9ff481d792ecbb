"""The MCP conformance suite against our fixture servers, directly and through the gateway.

`python -m tests.conformance` prints the results of each fixture server, with `--gateway` those through the gateway.
`servers/` has the fixtures, `suite.py` runs the suite, and `header_proxy.py` adds the token.
"""
