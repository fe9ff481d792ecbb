"""What real clients can do with real servers through the gateway: `python -m tests.matrix` writes the table.

The result is docs/reference/compatibility.md. `servers` names the servers and what is asked of each, `clients` the
clients; `programs` and tests/clients/matrix.mjs are the clients' side, run where their SDK is installed.
"""
