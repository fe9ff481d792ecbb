"""The fields that conditions can use, and the error of a condition that cannot be used."""

import re

# The fields of an expression besides `args`, each with its CEL type and what it contains.
FIELDS: dict[str, tuple[str, str]] = {
    "tool.name": ("string", "Name by which clients call the tool, such as `github__create_issue`."),
    "tool.server": ("string", "Name of the server."),
    "tool.title": ("string", "Title of the tool; empty if the tool has none."),
    "tool.read_only": ("bool", "Whether the tool only reads."),
    "tool.destructive": ("bool", "Whether the tool may delete or overwrite."),
    "tool.open_world": ("bool", "Whether the tool reaches the outside world, such as the web."),
    "agent.name": ("string", "Name of the app or agent."),
    "agent.kind": ("string", "`agent` or `app`."),
    "person.email": ("string", "E-mail address of the person."),
    "person.teams": ("list<string>", "Names of the person's teams."),
    "person.role": ("string", "Name of the person's role; empty if the person has no role."),
    "gateway.name": ("string", "Name of the gateway."),
    "gateway.slug": ("string", "Last part of the gateway's URL."),
    "client.name": ("string", "Name that the client gives itself. A client can send any name."),
    "client.address": ("string", "IP address of the client."),
    "now.hour": ("int", "Hour of the call in the workspace's time zone, 0 to 23."),
    "now.minute": ("int", "Minute of the call, 0 to 59."),
    "now.weekday": ("int", "Day of the week: 1 is Monday, 7 is Sunday."),
    "now.date": ("string", "Date of the call, such as `2026-11-25`."),
}
ARGUMENTS = "args"


class BadExpression(Exception):
    """The condition cannot be used. `at` is the position of the first character that is wrong, from 0."""

    def __init__(self, problem: str, at: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.at = problem, at


is_identifier = re.compile(r"(?!(?:in|true|false|null)$)[A-Za-z_]\w*", re.ASCII).fullmatch
