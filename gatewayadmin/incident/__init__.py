"""*Incident* pages of hosts, people, connections, tokens and servers: calls, remaining access, and a stop button."""
