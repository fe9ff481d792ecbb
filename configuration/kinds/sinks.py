"""Log sinks in configuration files.

An export contains references instead of secrets. If an address has a path, the export contains a reference instead of
the address, because the path may contain a secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

from capabilities import Capability
from configuration.fields import REFERENCE_FORM, Field, choice, flag, secret, text
from configuration.kinds.base import Act, Change, Key, Kind, World, reference_for
from sinks.models import CONTENT, KIND_CHOICES, Sink, SinkError
from sinks.receivers import KINDS as RECEIVERS
from wire.cipher import Undecryptable

if TYPE_CHECKING:
    from accounts.models import User

ADDRESS = Field(
    "address",
    "Address, or a reference to it. An export writes a reference if the address has a path, which may contain a token.",
    {"type": "string", "maxLength": 500},
    "Write an address such as https://logs.example.com/in, or env:NAME or file:path.",
    "",
    is_secret=True,
)


class SinkKind(Kind):
    name, noun = "sinks", "log sink"
    about = "Log sinks."
    sees = frozenset({Capability.SINKS_MANAGE, Capability.LOGS_READ, Capability.AUDIT_READ})
    why_managers_see = ", because a plan tells whether an address or secret is the stored one"
    manages = Capability.SINKS_MANAGE
    fields = (
        text("name", "Name of the sink.", 80),
        choice("kind", "Kind of receiver.", [kind for kind, _ in KIND_CHOICES], is_fixed=True),
        ADDRESS,
        secret("secret", "Reference to the secret of the receiver."),
        flag("sends_calls", "Whether calls are sent.", True),
        flag("sends_events", "Whether admin events are sent.", True),
        flag("sends_payloads", "Whether recorded payloads are sent.", False),
        flag("enabled", "Whether it is enabled; false means paused.", True),
    )

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        for sink in world.narrowed(Sink.objects.all(), self):
            values = {one.name: getattr(sink, one.name) for one in self.fields if one.name != "secret"}
            if sink.place != sink.address:
                values["address"] = reference_for("sink", sink.name, "address")
            if sink.has_secret:
                values["secret"] = reference_for("sink", sink.name, "secret")
            yield (sink.name,), sink, values

    def secret_of(self, row: Any, name: str) -> str:
        try:
            return str(row.address if name == "address" else row.secret())
        except Undecryptable:
            return ""

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        mistakes = [*self._mistakes(change)]
        yield from mistakes or self._refusal(change, world)

    def _mistakes(self, change: Change) -> Iterator[tuple[str, str]]:
        values, receiver = change.values, RECEIVERS[change.values["kind"]]
        if not any(values[name] for name in CONTENT) or (values["sends_payloads"] and not values["sends_calls"]):
            yield "sends_calls", "Write true for sends_calls, sends_events or both. Payloads are sent only with calls."
        if receiver.example and not change.secrets.get("address") and change.act is Act.ADD:
            yield "address", f"This kind of sink needs an address, such as {receiver.example}."
        lacks_secret = change.act is Act.ADD and not values.get("secret")
        if "secret" in change.secrets or lacks_secret:
            try:
                receiver.check_secret(change.secrets.get("secret", ""))
            except ValueError as refusal:
                needs = "This kind of sink needs a secret. Write a reference, such as env:SIEM_SECRET."
                yield "secret", needs if lacks_secret else str(refusal)

    def _refusal(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        """Yield the field and text of the error if `Sink.set_up` refuses the new values.

        A new sink or a new address is not checked if `world.secrets` lacks a reference in `address` or `secret`.
        """
        values = change.values
        references = {str(values[name]) for name in ("address", "secret") if REFERENCE_FORM(values.get(name) or "")}
        if (change.act is Act.ADD or "address" in change.secrets) and references - world.secrets.keys():
            return
        sink = copy(change.row) if change.row else Sink(kind=values["kind"])
        try:
            sink.set_up({name: values[name] for name in CONTENT} | _given(change, world), by=None)
        except SinkError as refusal:
            yield refusal.field, str(refusal)

    def needs(self, change: Change) -> set[Capability]:
        sent = {capability for name, capability in CONTENT.items() if change.values.get(name)}
        return {self.manages, Capability.LOGS_READ, Capability.AUDIT_READ} | sent

    def add(self, change: Change, world: World, by: User) -> Any:
        values = {name: change.values[name] for name in ("name", "kind", *CONTENT)} | change.secrets
        return Sink.objects.add(**values, by=by)

    def edit(self, change: Change, world: World, by: User) -> None:
        change.row.edit(**change.after("name", *CONTENT) | _given(change, world), by=by)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        less = [name.removeprefix("sends_") for name in CONTENT if change.after().get(name) is False]
        if change.disables:
            return "Nothing will be sent until the sink is enabled again."
        return f"No longer sends: {', '.join(less)}." if less else ""


def _given(change: Change, world: World) -> dict[str, str]:
    """Return the new address and secret. A new address needs the secret again, even if the secret is unchanged."""
    known = world.secrets.get(str(change.values.get("secret")))
    again = {"secret": known} if known and "address" in change.secrets else {}
    return again | change.secrets
