"""*Incident* pages of hosts, people, connections, tokens and servers.

They show calls and remaining access, and have a button that stops the host, person, connection, token or server.
"""
