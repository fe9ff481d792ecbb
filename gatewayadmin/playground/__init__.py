"""The playground: a person runs a tool, prompt or resource as themselves, through every check an agent meets.

What it does with a call and why: docs/decisions/0030-the-playground-is-a-client.md.
"""
