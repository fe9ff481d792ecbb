"""Delivery of messages: by mail, or by a POST to a webhook, Slack or Microsoft Teams.

A POST is sent only if a Guard allows its address. A new kind of channel needs a member of ChannelKind, and a
function for its messages in BODIES.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
from django.conf import settings
from django.core.mail import EmailMessage
from django.core.validators import validate_email
from django.forms import ValidationError
from django.utils import timezone

from accounts.mail import reason
from servers.upstream_guard import guard_for_strangers, own_endpoints, upstream_guard
from sinks.receivers import Undelivered, shown_origin, signature, signing_key, weakness
from ui.rest import stamp
from wire.cipher import Undecryptable
from wire.guard import Guard, UrlRefused
from wire.outbound import NoAnswer, OutboundClient

if TYPE_CHECKING:
    from attention.models import Channel, Notification

SECONDS = 10.0
MOST_READ = 16 * 1024  # Bytes of an answer that are read; the content does not matter.
LINKING = re.compile(r"(?<=\w)[.:](?=[^\W\d]|//)")  # Does not match numbers and times such as 12:30.


class ChannelError(Exception):
    """The settings of a channel are refused; the message says why."""


class BadChannelAddress(ChannelError):
    """The address is not allowed."""


class BadChannelSecret(ChannelError):
    """The secret is too weak to sign with."""


def checked(channel: Channel, address: str, secret: str) -> bool:
    """Return whether the address is in a private network (see `Guard.check_now`); False for mail.

    Raises ChannelError if the address is not allowed, or if the secret of a webhook is too weak.
    """
    if channel.kind == "mail":
        try:
            validate_email(address)
        except ValidationError:
            raise BadChannelAddress("Enter an e-mail address.") from None
        return False
    try:
        # Only channels of the workspace may have private addresses, because only workspace managers may set them up.
        guard = upstream_guard() if channel.owner_id is None else _guard_for_people()
        is_private = guard.check_now(address)
    except UrlRefused as refusal:
        raise BadChannelAddress(str(refusal)) from None
    if channel.kind == "webhook" and (why := weakness(secret)):
        raise BadChannelSecret(
            f"A webhook needs a secret of at least 24 random bytes, but {why}. "
            "Make a secret with “openssl rand -base64 32”."
        )
    return is_private


def _guard_for_people() -> Guard:
    """Return the guard for people's own channels, which allows only public addresses.

    The gateway resolves the host names itself, even if there is an outbound proxy.
    """
    return replace(guard_for_strangers(), own=own_endpoints())


def origin(address: str) -> str:
    """Return scheme, host name and port of an address, without the path, which is a credential."""
    return shown_origin(address)[:255]


@dataclass(frozen=True)
class Parcel:
    """One message with everything needed to deliver it without the database."""

    kind: str
    address: str
    secret: str
    private: bool
    matter: str
    subject: str
    text: str
    link: str
    uid: str
    at: datetime
    is_personal: bool

    @classmethod
    def of(cls, channel: Channel, message: Notification) -> Parcel:
        """Return the message as a parcel. Raises Undelivered if no key decrypts the address."""
        try:
            address, secret = channel.opened()
        except Undecryptable:
            raise Undelivered(
                "The channel's address cannot be decrypted. Enter the address again.", for_good=True
            ) from None
        uid = f"msg_{message.pk or uuid4().hex}"
        at = timezone.now()
        content = (message.matter, message.subject, message.text, message.link)
        return cls(channel.kind, address, secret, channel.private, *content, uid, at, channel.owner_id is not None)

    def deliver(self) -> None:
        """Send the message, and return once the receiver has accepted it. Raises Undelivered."""
        if self.kind == "mail":
            self._mail()
        else:
            self._post(orjson.dumps(BODIES[self.kind](self)))

    def _mail(self) -> None:
        if not settings.MAIL_SERVER:
            raise Undelivered("No mail server is set.", for_good=True)
        try:
            text = f"{without_links(self.text)}\n\n{self.link}\n"
            EmailMessage(without_links(self.subject), text, bcc=[self.address]).send()
        except OSError as error:  # Also covers smtplib's errors.
            raise Undelivered(reason(error)) from None

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json"} | (self._signed(body) if self.secret else {})
        try:
            with OutboundClient(self._guard(), MOST_READ, SECONDS) as client:
                status = client.ask("POST", self.address, headers, body, needs_body=False).status
        except NoAnswer as failure:
            raise Undelivered(f"It {str(failure).removesuffix('.')}.") from None
        if not 200 <= status < 300:
            raise Undelivered(f"It answered {status}.", for_good=status in (400, 404, 410))

    def _guard(self) -> Guard:
        if self.is_personal:
            return _guard_for_people()
        return upstream_guard() if self.private else upstream_guard().outside()

    def _signed(self, body: bytes) -> dict[str, str]:
        """Return the headers that Standard Webhooks requires, with the signature."""
        now = str(int(time.time()))
        made = signature(signing_key(self.secret), self.uid, now, body)
        return {"webhook-id": self.uid, "webhook-timestamp": now, "webhook-signature": f"v1,{made}"}


def _webhook(parcel: Parcel) -> dict[str, Any]:
    data = {"matter": parcel.matter, "title": parcel.subject, "text": parcel.text, "link": parcel.link}
    return {"type": "attention", "timestamp": stamp(parcel.at), "data": data | {"gateway": settings.PUBLIC_URL}}


def _slack(parcel: Parcel) -> dict[str, Any]:
    """Return the body for Slack, with Slack's control characters escaped, because names may contain `<!channel>`."""
    subject, text = (_escaped(without_links(words)) for words in (parcel.subject, parcel.text))
    link = f"<{_escaped(parcel.link)}|Open>"
    return {"text": f"{subject}\n{text}\n{link}", "unfurl_links": False, "unfurl_media": False}


def without_links(text: str) -> str:
    """Return `text` with zero-width spaces, so that no receiver turns a name such as `evil.example` into a link."""
    return LINKING.sub("\\g<0>\u200b", text)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _teams(parcel: Parcel) -> dict[str, Any]:
    """Return the body for Teams, a message with an adaptive card.

    Names in the card cannot become links, because its text is not Markdown and `without_links` breaks up addresses.
    """
    runs = [("Bolder", without_links(parcel.subject)), ("Default", without_links(parcel.text))]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.2",
        "body": [
            {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": text, "weight": weight}]}
            for weight, text in runs
            if text
        ],
        "actions": [{"type": "Action.OpenUrl", "title": "Open", "url": parcel.link}],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
    return {"type": "message", "attachments": [attachment]}


BODIES = {"webhook": _webhook, "slack": _slack, "teams": _teams}
