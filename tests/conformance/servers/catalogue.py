"""What `python_v1.py` offers, from catalogue.json, and how its tools behave. Imports no SDK."""

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
    """One request under way, as its SDK carries it."""

    @property
    def declared(self) -> set[str]:
        """Names of the capabilities the client declared."""

    async def log(self, line: str) -> None: ...

    async def report(self, progress: float, total: float) -> None: ...

    async def close_stream(self) -> None:
        """End the event stream of this request; its answer waits for whoever comes back for it."""

    async def announce(self, what: str) -> None:
        """Tell the listeners that `tools`, `prompts` or the resource of this URI changed."""

    async def ask(self, request: Json) -> Json:
        """The client's result for a request of the server (session era). Raises Refused."""


def definitions(entries: dict[str, Json]) -> list[Json]:
    return [entry["definition"] for entry in entries.values()]


def entry_of(entries: dict[str, Json], name: str) -> Json:
    if name not in entries:
        raise Unknown(f"Unknown: {name}")
    return entries[name]


def read(uri: str) -> Json:
    """The result of resources/read. Raises Unknown."""
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
    """Whatever a tool does before it answers."""
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
    """The result of tools/call or prompts/get; `answers` is what the client was asked for, in words."""
    text = {"type": "text", "text": entry.get("says", "").replace("{answer}", answers)}
    if "content" in entry:
        return {"content": fill(entry["content"], arguments), "isError": entry.get("isError", False)}
    if "messages" in entry:
        return {"messages": fill(entry["messages"], arguments)}
    if "arguments" in entry["definition"]:
        return {"messages": [{"role": "user", "content": text}]}
    return {"content": [text]}


async def ask_on_stream(entry: Json, arguments: Json, call: Call) -> Json:
    """Ask as the session era does: requests to the client while its own is under way.

    Asks whatever the client declared: what a client (or a gateway) says to a request it cannot serve is its business.
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
    """A client's result in one line: what a model said, where the roots are, what a person entered."""
    if "roots" in result:
        return ", ".join(root["uri"] for root in result["roots"])
    if "action" in result:
        return f"action={result['action']}, content={json.dumps(result.get('content'))}"
    return str(result["content"]["text"])


def fill(value: Any, arguments: Json) -> Any:
    """`value` with `{name}` in its texts replaced by the argument of that name."""
    if isinstance(value, str):
        for name, argument in arguments.items():
            value = value.replace(f"{{{name}}}", str(argument))
        return value
    if isinstance(value, list):
        return [fill(item, arguments) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, arguments) for key, item in value.items()}
    return value
