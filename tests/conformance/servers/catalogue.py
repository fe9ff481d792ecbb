"""Reads the features of `python_v1.py` from catalogue.json, and implements its tools. Imports no SDK."""

import asyncio
import json
from pathlib import Path
from typing import Any, Protocol

type Json = dict[str, Any]

STEP_SECONDS = 0.05

_CATALOGUE = json.loads((Path(__file__).parent / "catalogue.json").read_text())
TOOLS: dict[str, Json] = {tool["definition"]["name"]: tool for tool in _CATALOGUE["tools"]}
PROMPTS: dict[str, Json] = {prompt["definition"]["name"]: prompt for prompt in _CATALOGUE["prompts"]}
RESOURCES: dict[str, Json] = {resource["definition"]["uri"]: resource for resource in _CATALOGUE["resources"]}
TEMPLATE: Json = _CATALOGUE["templates"][0]


class Unknown(Exception):
    """No tool, prompt or resource of this name."""


class CapabilityMissing(Exception):
    """The client did not declare what the request needs (-32021)."""

    def __init__(self, *capabilities: str) -> None:
        super().__init__(f"The client did not declare {', '.join(capabilities)}")
        self.required: Json = {"requiredCapabilities": {name: {} for name in capabilities}}


class Refused(Exception):
    """The client answered a server's request with an error."""


class Call(Protocol):
    """A running request, with the operations that the server's SDK must provide."""

    @property
    def declared(self) -> set[str]:
        """Return the names of the client's declared capabilities."""

    async def log(self, line: str) -> None: ...

    async def report(self, progress: float, total: float) -> None: ...

    async def close_stream(self) -> None:
        """Close the event stream of this request; the client must resume it to get the answer."""

    async def announce(self, what: str) -> None:
        """Notify clients of a change. `what` is "tools", "prompts" or the URI of a resource."""

    async def ask(self, request: Json) -> Json:
        """Send a request to the client (session era), and return its result. Raises Refused."""


def definitions(entries: dict[str, Json]) -> list[Json]:
    return [entry["definition"] for entry in entries.values()]


def entry_of(entries: dict[str, Json], name: str) -> Json:
    if name not in entries:
        raise Unknown(f"Unknown: {name}")
    return entries[name]


def read(uri: str) -> Json:
    """Return the result of resources/read. Raises Unknown."""
    before, after = TEMPLATE["definition"]["uriTemplate"].split("{id}")
    if uri in RESOURCES:
        entry, arguments = RESOURCES[uri], {}
    elif uri.startswith(before) and uri.endswith(after):
        entry, arguments = TEMPLATE, {"id": uri.removeprefix(before).removesuffix(after)}
    else:
        raise Unknown(f"Resource not found: {uri}")
    contents = fill(entry["contents"], arguments)
    return {"contents": [{"uri": uri, "mimeType": entry["definition"]["mimeType"], **contents}]}


async def act(entry: Json, call: Call) -> None:
    """Perform the side effects of a tool before it answers."""
    if (needed := entry.get("needs")) and needed not in call.declared:
        raise CapabilityMissing(needed)
    for number, line in enumerate(entry.get("logs", ())):
        await asyncio.sleep(STEP_SECONDS if number else 0)
        await call.log(line)
    for progress in entry.get("progress", ()):
        await asyncio.sleep(STEP_SECONDS if progress else 0)
        await call.report(progress, 100)
    if entry.get("closesStream"):
        await call.close_stream()
        await asyncio.sleep(2 * STEP_SECONDS)
    if what := entry.get("announces"):
        await call.announce(what)


def answer(entry: Json, arguments: Json, answers: str = "") -> Json:
    """Return the result of tools/call or prompts/get; `answers` are the client's answers as text."""
    text = {"type": "text", "text": entry.get("says", "").replace("{answer}", answers)}
    if "content" in entry:
        return {"content": fill(entry["content"], arguments), "isError": entry.get("isError", False)}
    if "messages" in entry:
        return {"messages": fill(entry["messages"], arguments)}
    if "arguments" in entry["definition"]:
        return {"messages": [{"role": "user", "content": text}]}
    return {"content": [text]}


async def ask_on_stream(entry: Json, arguments: Json, call: Call) -> Json:
    """Send the entry's requests to the client during the call (session era), and return the result of the call.

    The client also gets requests for which it declared no capability, because tests check how it refuses them.
    """
    answers = []
    for questions in entry["asks"]:
        for request in questions.values():
            try:
                answers.append(in_words(await call.ask(fill(request, arguments))))
            except Refused as error:
                if "content" not in answer(entry, arguments):
                    raise
                return {"content": [{"type": "text", "text": f"The client refused: {error}"}], "isError": True}
    return answer(entry, arguments, "; ".join(answers))


def in_words(result: Json) -> str:
    """Return a client's result as one line: the model's text, the roots, or the person's input."""
    if "roots" in result:
        return ", ".join(root["uri"] for root in result["roots"])
    if "action" in result:
        return f"action={result['action']}, content={json.dumps(result.get('content'))}"
    return str(result["content"]["text"])


def fill(value: Any, arguments: Json) -> Any:
    """Return `value` with each placeholder `{name}` in its strings replaced by the argument `name`."""
    if isinstance(value, str):
        for name, argument in arguments.items():
            value = value.replace(f"{{{name}}}", str(argument))
        return value
    if isinstance(value, list):
        return [fill(item, arguments) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, arguments) for key, item in value.items()}
    return value
