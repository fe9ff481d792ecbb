"""The form of a sink, with the fields of its kind."""

from __future__ import annotations

from typing import Any

from django import forms

from accounts.models import User
from sinks.models import Sink, SinkError, SinkKind
from sinks.receivers import ADDRESSED, KEYED, OBJECTS
from sinks.signing import LEAST_SECRET

HELP = {
    "webhook": "https:// and the whole address. Inside GATEWAY_PRIVATE_UPSTREAMS it may be http://.",
    **dict.fromkeys(
        OBJECTS,
        "https://, the host, the bucket and a prefix, such as https://s3.eu-central-1.amazonaws.com/logs/gateway. "
        "“?region=” at its end says the region where the host does not.",
    ),
    "otlp": "https:// and where OTLP is taken over HTTP; without a path /v1/logs is added. Inside "
    "GATEWAY_PRIVATE_UPSTREAMS it may be http://.",
    "syslog": "tls://, the host and its port. Inside GATEWAY_PRIVATE_UPSTREAMS it may be tcp://. UDP loses lines "
    "and is not offered.",
}

# Label and help text of the secret, by kind.
SECRETS = {
    **dict.fromkeys(OBJECTS, ("Access key", "The id of an access key that may put objects, a colon, and its secret.")),
    "otlp": (
        "Headers",
        "If it wants any: name=value with commas between, values percent-encoded, such as Authorization=Bearer%20abc.",
    ),
}


class SinkForm(forms.Form):
    """The settings of a sink of one kind. `sink` is the one being edited, None for a new one; `viewer` edits it."""

    name = forms.CharField(max_length=80)
    address = forms.CharField(max_length=500, widget=forms.TextInput(attrs={"inputmode": "url"}))
    secret = forms.CharField(
        max_length=500,
        required=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text=f"At least {LEAST_SECRET} bytes, made by chance: “openssl rand” makes one. "
        "Every delivery is signed with it.",
    )
    sends_calls = forms.BooleanField(label="Calls", required=False, initial=True)
    sends_payloads = forms.BooleanField(
        label="Payloads with the calls", required=False, help_text="Where the workspace records them."
    )
    sends_events = forms.BooleanField(label="Admin events", required=False, initial=True)
    from_beginning = forms.BooleanField(
        label="Begin with what is in the log already",
        required=False,
        help_text="Otherwise it gets what comes from now on.",
    )

    def __init__(self, data: Any, *, kind: str, sink: Sink | None = None, viewer: User | None = None) -> None:
        address = sink.place_for(viewer) if sink and viewer else ""
        super().__init__(data, initial=sink.editable() | {"address": address} if sink else None)
        if kind in ADDRESSED:
            self.fields["address"].help_text = HELP[kind]
        else:
            del self.fields["address"]
        if kind not in KEYED:
            del self.fields["secret"]
        elif sink:
            self.fields["secret"].help_text = "Left empty, the one it has stays."
        elif kind in SECRETS:
            self.fields["secret"].help_text = SECRETS[kind][1]
        if kind in SECRETS:
            self.fields["secret"].label = SECRETS[kind][0]
        if sink:
            del self.fields["from_beginning"]

    @property
    def what(self) -> list[forms.BoundField]:
        """The fields that select what is sent."""
        names = ("sends_calls", "sends_payloads", "sends_events", "from_beginning")
        return [self[name] for name in names if name in self.fields]

    def refuse(self, error: SinkError) -> None:
        """Show the error next to its field."""
        self.add_error(error.field or None, str(error))


def kind_of(name: str) -> str:
    """Return the kind of this name; a webhook for invalid names."""
    return name if name in SinkKind.values else SinkKind.WEBHOOK.value
