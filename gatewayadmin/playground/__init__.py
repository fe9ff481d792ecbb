"""The playground: a person runs a tool, prompt or resource as themselves, subject to the same checks as an agent.

The reasons are in docs/decisions/0030-the-playground-is-a-client.md.
"""
