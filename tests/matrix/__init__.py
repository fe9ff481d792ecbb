"""Compatibility of real clients with real servers through the gateway: `python -m tests.matrix` writes the table.

The result is docs/reference/compatibility.md. The module `servers` has the servers and the requests to each; `clients`
has the clients. `programs` and tests/clients/matrix.mjs are the client programs, run where their SDK is installed.
"""
