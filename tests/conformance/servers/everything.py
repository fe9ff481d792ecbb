"""All features that the conformance suite requires of a server, for Python SDK 2 and FastMCP 4.

Both libraries have the same decorators, and their context objects have the same attributes, so this module works with
either. To ask the client, tools send a request in the session era, and return `input_required` in 2026-07-28.
"""
# mypy: ignore-errors

import asyncio
import base64
import json

from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    ListRootsResult,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, Field

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
SILENCE = "UklGRiwAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQgAAACAgICAgICAgA=="
STEP_SECONDS = 0.05


def offer(server, Context, Message, Refusal, announce, count):  # noqa: N803 - classes of either library
    """Register all features with `server`, a FastMCP or an MCPServer.

    Context, Message and Refusal are classes of the library. If a tool raises Refusal, the client gets a JSON-RPC error.
    `announce(context, "tools")` notifies clients of a changed list, and `count(context)` counts the session's calls.
    """
    offer_content(server)
    offer_messages(server, Context)
    offer_questions_of_sessions(server, Context)
    offer_questions(server, Context)
    offer_questions_with_state(server, Context)
    offer_capabilities(server, Context, Refusal)
    offer_changes(server, Context, announce)
    offer_either_era(server, Context, count)
    offer_resources(server)
    offer_prompts(server, Context, Message)

    @server.completion()
    async def complete(ref, argument, context):
        return None


def offer_content(server):
    image = ImageContent(type="image", data=PIXEL, mime_type="image/png")

    @server.tool()
    def test_simple_text() -> str:
        """Return one text."""
        return "This is a simple text response for testing."

    @server.tool()
    def test_image_content() -> list[ImageContent]:
        """Return a red pixel."""
        return [image]

    @server.tool()
    def test_audio_content() -> list[AudioContent]:
        """Return a millisecond of silence."""
        return [AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")]

    @server.tool()
    def test_embedded_resource() -> list[EmbeddedResource]:
        """Return a resource inside the result."""
        return [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]

    @server.tool()
    def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
        """Return a text, an image and a resource."""
        resource = embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
        return [text("Multiple content types test:"), image, resource]

    @server.tool()
    def test_error_handling() -> str:
        """Fail."""
        raise RuntimeError("This tool intentionally returns an error for testing")


def offer_messages(server, Context):  # noqa: N803
    @server.tool()
    async def test_tool_with_logging(context: Context) -> str:
        """Log three lines, 50 ms apart."""
        for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await context.info(line)
            await asyncio.sleep(STEP_SECONDS)
        return "Three lines were logged."

    @server.tool()
    async def test_logging_tool(context: Context) -> str:
        """Log one line."""
        await context.info("Tool executed")
        return "One line was logged."

    @server.tool()
    async def test_tool_with_progress(context: Context) -> str:
        """Report progress three times, 50 ms apart."""
        for progress in (0, 50, 100):
            await context.report_progress(progress, 100)
            await asyncio.sleep(STEP_SECONDS)
        return "Progress was reported three times."


class Person(BaseModel):
    username: str = Field(description="User's response")
    email: str = Field(description="User's email address")


class Name(BaseModel):
    name: str


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: str = Field("active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = True


def titled(key, *values):
    return {key: [{"const": value, "title": value.title()} for value in values]}


class Choices(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})  # noqa: N815
    titledSingle: str = Field(json_schema_extra=titled("oneOf", "value1", "value2", "value3"))  # noqa: N815
    legacyEnum: str = Field(  # noqa: N815
        json_schema_extra={"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option 1", "Option 2", "Option 3"]}
    )
    untitledMulti: list[str] = Field(  # noqa: N815
        json_schema_extra={"items": {"type": "string", "enum": ["option1", "option2", "option3"]}}
    )
    titledMulti: list[str] = Field(json_schema_extra={"items": titled("anyOf", "value1", "value2", "value3")})  # noqa: N815


def offer_questions_of_sessions(server, Context):  # noqa: N803
    @server.tool()
    async def test_sampling(prompt: str, context: Context) -> str:
        """Ask the client's model."""
        said = await context.session.create_message(
            [SamplingMessage(role="user", content=text(prompt))], max_tokens=100, related_request_id=context.request_id
        )
        return f"LLM response: {said.content.text}"

    @server.tool()
    async def test_elicitation(message: str, context: Context) -> str:
        """Ask the person for a name and an address."""
        return in_words(await context.elicit(message, Person))

    @server.tool()
    async def test_elicitation_sep1034_defaults(context: Context) -> str:
        """Ask the person to check default values."""
        return in_words(await context.elicit("Please check these values.", Defaults))

    @server.tool()
    async def test_elicitation_sep1330_enums(context: Context) -> str:
        """Ask the person to choose."""
        return in_words(await context.elicit("Please choose.", Choices))


def offer_questions(server, Context):  # noqa: N803
    """Register the tools that return `input_required`."""

    @server.tool()
    async def test_input_required_result_elicitation(context: Context) -> str | InputRequiredResult:
        """Ask for a name."""
        answers = answered(context, "user_name")
        return f"Hello, {answers[0].content['name']}" if answers else needed(user_name=form("name"))

    @server.tool()
    async def test_input_required_result_sampling(context: Context) -> str | InputRequiredResult:
        """Ask the model for a capital."""
        answers = answered(context, "capital_question")
        asked = sample("What is the capital of France?")
        return answers[0].content.text if answers else needed(capital_question=asked)

    @server.tool()
    async def test_input_required_result_list_roots(context: Context) -> str | InputRequiredResult:
        """Ask for the roots."""
        answers = answered(context, "client_roots")
        return f"{len(answers[0].roots)} roots" if answers else needed(client_roots=ListRootsRequest())

    @server.tool()
    async def test_streaming_elicitation(context: Context) -> str | InputRequiredResult:
        """Ask for a confirmation."""
        return "confirmed" if answered(context, "confirm") else needed(confirm=form("ok"))


def offer_questions_with_state(server, Context):  # noqa: N803
    """Register the tools that return `input_required` with a state, which the library seals."""

    @server.tool()
    async def test_input_required_result_request_state(context: Context) -> str | InputRequiredResult:
        """Ask for a confirmation, with a state."""
        is_answered = context.request_state and answered(context, "confirm")
        return "state-ok" if is_answered else needed("one", confirm=form("ok"))

    @server.tool()
    async def test_input_required_result_tampered_state(context: Context) -> str | InputRequiredResult:
        """Ask, then refuse a changed state."""
        return "state-ok" if context.request_state else needed("one", confirm=form("ok"))

    @server.tool()
    async def test_input_required_result_multiple_inputs(context: Context) -> str | InputRequiredResult:
        """Ask for a name, a text and the roots at once."""
        asked = {"user_name": form("name"), "greeting": sample("Say hello."), "client_roots": ListRootsRequest()}
        answers = answered(context, *asked)
        if not answers:
            return needed("one", **asked)
        name, greeting, roots = answers
        return f"{greeting.content.text} {name.content['name']}, {len(roots.roots)} roots"

    @server.tool()
    async def test_input_required_result_multi_round(context: Context) -> str | InputRequiredResult:
        """Ask for a name, then for a color."""
        seen = json.loads(context.request_state or "[]")
        answers = answered(context, f"step{len(seen) + 1}") if context.request_state else None
        if answers:
            seen.append(answers[0].content)
        if len(seen) == 2:
            return json.dumps(seen)
        return needed(json.dumps(seen), **{f"step{len(seen) + 1}": form("color" if seen else "name")})


def offer_capabilities(server, Context, Refusal):  # noqa: N803
    @server.tool()
    async def test_missing_capability(context: Context) -> str:
        """Fail unless the client declares sampling."""
        if not can(context, "sampling"):
            data = {"requiredCapabilities": {"sampling": {}}}
            raise Refusal(MISSING_REQUIRED_CLIENT_CAPABILITY, "The client does not declare sampling", data)
        return "The client declares sampling."

    @server.tool()
    async def test_input_required_result_capabilities(context: Context) -> str | InputRequiredResult:
        """Ask for a greeting in each way the client supports."""
        asked = {"sampling": sample("Say hello."), "elicitation": form("greeting")}
        asked = {name: request for name, request in asked.items() if can(context, name)}
        return "done" if answered(context, *asked) else needed(**asked)


def offer_either_era(server, Context, count):  # noqa: N803
    """Register tools that the suite does not call: a counter per session, and tools that ask clients of either era."""

    @server.tool(name="count")
    async def count_calls(context: Context) -> str:
        """Count the calls of this session."""
        return f"call {await count(context)}"

    @server.tool()
    async def ask(context: Context) -> str | InputRequiredResult:
        """Ask the person for a name."""
        if not is_modern(context):
            return in_words(await context.elicit("Who are you?", Name))
        answers = answered(context, "name")
        return f"action=accept, content={json.dumps(answers[0].content)}" if answers else needed(name=form("name"))

    @server.tool()
    async def say(context: Context) -> str | InputRequiredResult:
        """Have the client's model say something."""
        asked = sample("Say something.")
        if is_modern(context):
            answers = answered(context, "said")
            return answers[0].content.text if answers else needed(said=asked)
        return (await request(context, asked, CreateMessageResult)).content.text

    @server.tool()
    async def folders(context: Context) -> str | InputRequiredResult:
        """Name the client's roots."""
        asked = ListRootsRequest()
        if is_modern(context):
            answers = answered(context, "roots")
            return str(answers[0].roots) if answers else needed(roots=asked)
        return str((await request(context, asked, ListRootsResult)).roots)


def offer_changes(server, Context, announce):  # noqa: N803
    @server.tool()
    async def test_trigger_tool_change(context: Context) -> str:
        """Announce that the tools changed."""
        await announce(context, "tools")
        return "announced"

    @server.tool()
    async def test_trigger_prompt_change(context: Context) -> str:
        """Announce that the prompts changed."""
        await announce(context, "prompts")
        return "announced"


def offer_resources(server):
    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        """A text."""
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        """A red pixel."""
        return base64.b64decode(PIXEL)

    @server.resource("test://watched-resource", mime_type="text/plain")
    def watched() -> str:
        """A text to subscribe to."""
        return "Watched resource content"

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:
        """A text with its id."""
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def offer_prompts(server, Context, Message):  # noqa: N803
    @server.prompt()
    def test_simple_prompt() -> list[Message]:
        """A prompt without arguments."""
        return [Message(text("This is a simple prompt for testing."))]

    @server.prompt()
    def test_prompt_with_arguments(arg1: str, arg2: str) -> list[Message]:
        """A prompt with two arguments."""
        return [Message(text(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"))]

    @server.prompt()
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[Message]:  # noqa: N803
        """A prompt with a resource inside."""
        resource = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [Message(resource), Message(text("Please process the embedded resource above."))]

    @server.prompt()
    def test_prompt_with_image() -> list[Message]:
        """A prompt with a red pixel."""
        image = ImageContent(type="image", data=PIXEL, mime_type="image/png")
        return [Message(image), Message(text("Please analyze the image above."))]

    @server.prompt()
    async def test_input_required_result_prompt(context: Context) -> list[Message] | InputRequiredResult:
        """A prompt that needs a context."""
        answers = answered(context, "user_context")
        if not answers:
            return needed(user_context=form("context"))
        return [Message(text(f"Use this context: {answers[0].content['context']}"))]


def text(words):
    return TextContent(type="text", text=words)


def embedded(uri, mime_type, words):
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=words))


def is_modern(context):
    return context.request_context.protocol_version in MODERN_PROTOCOL_VERSIONS


async def request(context, asked, result):
    """Send the request `asked` to the client on the stream of the call, and return the client's answer."""
    related = ServerMessageMetadata(related_request_id=context.request_id)
    return await context.session.send_request(asked, result, metadata=related)


def in_words(result):
    """Return a person's answer as one line."""
    return f"action={result.action}, content={result.data.model_dump_json() if result.action == 'accept' else '{}'}"


def form(field):
    kind = "boolean" if field == "ok" else "string"
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=f"{field}?", requested_schema=schema))


def sample(words):
    messages = [SamplingMessage(role="user", content=text(words))]
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=messages, max_tokens=100))


def needed(state=None, **requests):
    return InputRequiredResult(input_requests=requests, request_state=state)


def answered(context, *keys):
    """Return the client's answers under `keys`. Return None if one is missing, or if a person entered nothing."""
    answers = [(context.input_responses or {}).get(key) for key in keys]
    refused = [answer for answer in answers if isinstance(answer, ElicitResult) and not answer.content]
    return None if refused or None in answers else answers


def can(context, capability):
    declared = context.session.client_capabilities
    return declared is not None and getattr(declared, capability) is not None
