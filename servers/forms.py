"""Forms of the Servers pages, and slugs of servers and gateways. Slugs never change and are never reused."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.core.exceptions import ValidationError
from django.db import models
from django.utils.text import slugify

from servers.models import (
    SIGN_IN_SETTINGS,
    AuthType,
    Health,
    Identity,
    ResourceSent,
    Server,
    ServerQuerySet,
    page_validator,
    slug_validator,
)
from servers.upstream_guard import leads_inside, upstream_guard
from ui.forms import ListFilter, named
from wire.guard import UrlRefused
from wire.oauth_client import fits_a_header, is_header_name, is_https, may_carry, scopes_of

LABEL_TAKEN = "A shared credential with this label already exists."
TAKEN = "This name or slug has just been taken. Choose another."


RESERVED = frozenset({"add", "find", "slug"})  # Path segments of our own URLs.


def suggest(name: str, given_out: models.QuerySet[Any], longest: int) -> str:
    """Return an unused slug made of the first words of `name`; empty if the name has no usable character."""
    base = slugify(name).replace("_", "-").strip("-")
    if len(base) > longest:
        base = base[:longest] if "-" not in base[:longest] else base[: longest + 1].rpartition("-")[0]
    if not base:
        return ""
    slugs = set(given_out.filter(slug__startswith=base[: longest - 4]).values_list("slug", flat=True)) | RESERVED
    candidates = [base, *(f"{base[: longest - len(str(n)) - 1].rstrip('-')}-{n}" for n in range(2, 1000))]
    return next(slug for slug in candidates if slug not in slugs)


def address(label: str, help_text: str) -> forms.CharField:
    """Return an optional field for a URL. The field accepts any text; forms validate it in their `clean` methods."""
    text = forms.TextInput(attrs={"inputmode": "url"})
    return forms.CharField(label=label, required=False, max_length=500, widget=text, help_text=help_text)


class SlugField(forms.CharField):
    """Field for a slug. If it is left empty, the slug is made from the name."""

    def __init__(self, given_out: models.QuerySet[Any], **options: Any) -> None:
        super().__init__(required=False, validators=[slug_validator], **options)
        self.given_out = given_out

    def clean(self, value: Any) -> Any:
        slug = super().clean(value)
        if slug in RESERVED:
            raise ValidationError(f"“{slug}” is reserved for this site's own URLs. Choose another.")
        if slug and self.given_out.all().filter(slug=slug).exists():
            raise ValidationError("This slug was used before. Choose another.")
        return slug


class SlugForm(forms.Form):
    """Form with a name and a slug. If the slug is left empty, it is made from the name."""

    def clean(self) -> dict[str, Any]:
        values = super().clean() or self.cleaned_data
        if "slug" in self.fields and "name" in values and values.get("slug") == "":
            field: Any = self.fields["slug"]
            values["slug"] = suggest(values["name"], field.given_out.all(), field.max_length)
            if not values["slug"]:
                self.add_error("slug", "No slug can be made from this name. Enter one.")
        return values


class SignInSettings:
    """Form mixin that validates the sign-in fields.

    The form must declare the fields in the order of the mixin's `clean_` methods.
    """

    cleaned_data: dict[str, Any]

    @property
    def server_url(self) -> str:
        return str(self.cleaned_data.get("url", ""))

    def clean_expected_issuer(self) -> str:
        """Check the issuer but do not change it, because the issuer's metadata must contain exactly this text."""
        issuer = str(self.cleaned_data["expected_issuer"])
        if issuer and not is_https(issuer, like=self.server_url):
            raise ValidationError("An issuer is a URL that begins with https://, spelled exactly as in its metadata.")
        return issuer

    def clean_resource_sent(self) -> str:
        return str(self.cleaned_data["resource_sent"] or ResourceSent.SERVER)

    def clean_fixed_resource(self) -> str:
        """Return the fixed `resource`, a URL without a fragment (RFC 8707 section 2); empty if it is not sent."""
        resource = str(self.cleaned_data["fixed_resource"])
        if self.cleaned_data.get("resource_sent") != ResourceSent.FIXED:
            return ""
        if not resource:
            raise ValidationError("Enter the value to send, such as https://mcp.example.com/mcp.")
        if not is_https(resource, like="http://") or "#" in resource:
            raise ValidationError("Enter a URL that begins with https:// or http:// and contains no #.")
        return resource

    def clean_fixed_scopes(self) -> str:
        """Return the scopes, each once, separated by spaces (RFC 6749 section 3.3)."""
        text = str(self.cleaned_data["fixed_scopes"])
        found = scopes_of(text)
        if unusable := [each for each in text.split() if each not in found]:
            raise ValidationError(f"“{unusable[0][:80]}” is not a scope. Separate scopes with spaces.")
        return " ".join(found)

    def clean_authorization_endpoint(self) -> str:
        return self._endpoint("authorization_endpoint")

    def clean_token_endpoint(self) -> str:
        token = self._endpoint("token_endpoint")
        if bool(token) != bool(self.cleaned_data.get("authorization_endpoint", token)):
            raise ValidationError("Enter the authorization endpoint and the token endpoint, or neither.")
        return token

    def clean_revocation_endpoint(self) -> str:
        revocation = self._endpoint("revocation_endpoint")
        if revocation and not self.cleaned_data.get("token_endpoint", revocation):
            raise ValidationError("Leave this empty, or also enter the authorization endpoint and the token endpoint.")
        return revocation

    def _endpoint(self, name: str) -> str:
        """Return an issuer's endpoint: a URI without a fragment (RFC 6749 sections 3.1, 3.2)."""
        url = str(self.cleaned_data[name])
        if url and (not is_https(url, like=self.server_url) or "#" in url):
            raise ValidationError("An endpoint is a URL that begins with https:// and contains no #.")
        try:
            if url:
                upstream_guard().check_url(url)
        except UrlRefused as refusal:
            raise ValidationError(str(refusal)) from None
        return url


class ServerForm(SignInSettings, SlugForm):
    """Form for the settings of an upstream server. `server` is the edited server, None for a new server."""

    name = forms.CharField(max_length=80)
    slug = SlugField(
        Server.objects.all(), max_length=16, help_text="Prefix of this server's tool names; cannot be changed."
    )
    # Not type="url": browsers would refuse a command, or a host without https://, with a less helpful message.
    url = forms.CharField(label="URL", max_length=500, widget=forms.TextInput(attrs={"inputmode": "url"}))
    auth_type = forms.ChoiceField(label="Auth type", choices=AuthType.choices, initial=AuthType.NONE)
    header_name = forms.CharField(required=False, max_length=80, help_text="For “Own header” only.")
    timeout_seconds = forms.IntegerField(
        label="Time limit",
        min_value=1,
        max_value=120,
        initial=30,
        help_text="Seconds without any data from the server during a call, 120 at most.",
    )
    total_seconds = forms.IntegerField(
        label="Longest call",
        required=False,
        min_value=1,
        max_value=3600,
        initial=600,
        help_text="Seconds for a whole call, 3,600 at most.",
    )
    max_concurrent = forms.IntegerField(
        label="Calls at once",
        required=False,
        min_value=1,
        max_value=1000,
        initial=64,
        help_text="All people and worker processes share this number. Further calls wait in a queue.",
    )

    lists_live = forms.BooleanField(
        label="Ask live",
        required=False,
        help_text=(
            "Tick this if the server's lists differ by session. The gateway then requests a list from the server "
            "whenever a client asks for it. The client waits 3 seconds at most."
        ),
    )
    key_help = forms.CharField(
        label="Where to get a key",
        required=False,
        max_length=300,
        help_text="For example “Ask the platform team”. People who need to add their credential see this text.",
    )
    key_url = forms.URLField(
        label="Link to get a key",
        required=False,
        max_length=500,
        assume_scheme="https",
        validators=[page_validator],
        widget=forms.TextInput(attrs={"inputmode": "url"}),
        help_text="Page on which people create their key. A link to this page appears after the text above.",
    )
    expected_issuer = address(
        "Expected issuer",
        "Needed only if sign-in fails because the issuer's name differs from its address. Enter the issuer's "
        "exact name, but only if you are sure of it. If this is empty, name and address must match.",
    )
    resource_sent = forms.ChoiceField(
        label="Resource",
        required=False,
        choices=ResourceSent.choices,
        initial=ResourceSent.SERVER,
        help_text=(
            "The “resource” that tokens are requested for. Change it if the issuer answers “invalid_target” or "
            "similar. By default, no resource is sent to Microsoft Entra."
        ),
    )
    fixed_resource = address(
        "Fixed resource",
        "For “A fixed value” only: the name by which the issuer knows this server.",
    )
    fixed_scopes = forms.CharField(
        label="Fixed scopes",
        required=False,
        max_length=1000,
        help_text="Scopes to request instead of the server's scopes, separated by spaces. If this is empty, the "
        "server's scopes are requested.",
    )
    authorization_endpoint = address(
        "Authorization endpoint",
        "Address of the sign-in page, only for issuers without metadata. If you enter it, the issuer's metadata are "
        "not read, and you must enter the client ID on the server's page.",
    )
    token_endpoint = address(
        "Token endpoint",
        "Issues and renews tokens. Required if you enter an authorization endpoint.",
    )
    revocation_endpoint = address(
        "Revocation endpoint",
        "Revokes tokens. Leave it empty if the issuer has no such endpoint.",
    )
    assume_pkce = forms.BooleanField(
        label="Assume PKCE",
        required=False,
        help_text=(
            "Allow sign-in although the issuer does not announce PKCE. Tick it only if you know that the issuer "
            "supports PKCE, as Microsoft Entra and Amazon Cognito do."
        ),
    )
    private = forms.BooleanField(
        label="At a private address",
        required=False,
        help_text=(
            "Allow the server to have an address in the networks of GATEWAY_PRIVATE_UPSTREAMS. For a new URL, the "
            "gateway ticks or clears this box. If the server later moves to such a network, tick the box yourself."
        ),
    )
    end_sign_ins = forms.BooleanField(label="End these sign-ins", required=False)

    def __init__(self, *args: Any, server: Server | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.server = server
        self.ends = 0  # The number of sign-ins that saving would end. The person has to confirm that they end.
        self._leads_inside: bool | None = None
        if server is None:
            del self.fields["private"], self.fields["end_sign_ins"]
            return
        del self.fields["slug"]
        if server.is_built_in:
            credential = ("url", "auth_type", "header_name", "key_help", "key_url")
            for name in (*credential, *SIGN_IN_SETTINGS, "private", "end_sign_ins"):
                del self.fields[name]
        self.initial = {name: getattr(server, name) for name in self.fields if name != "end_sign_ins"}

    @property
    def shows_sign_in(self) -> bool:
        """True if the sign-in settings are shown expanded, because one of them is set or has an error."""
        return any(name in self.errors for name in SIGN_IN_SETTINGS) or any(
            self[name].value() not in ("", None, False, ResourceSent.SERVER) for name in SIGN_IN_SETTINGS
        )

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"])
        if _others(self.server).filter(named(name)).exists():
            raise ValidationError("A server with this name already exists.")
        return name

    def clean_url(self) -> str:
        url = str(self.cleaned_data["url"])
        if self.server and url == self.server.url:
            return url
        checked, self._leads_inside = _callable(url)
        return checked

    def clean_total_seconds(self) -> int:
        given: int | None = self.cleaned_data["total_seconds"]
        return given or (self.server.total_seconds if self.server else 600)

    def clean_max_concurrent(self) -> int:
        value: int | None = self.cleaned_data["max_concurrent"]
        return value or (self.server.max_concurrent if self.server else 64)

    def clean_header_name(self) -> str:
        name = str(self.cleaned_data["header_name"])
        if self.cleaned_data.get("auth_type") != AuthType.HEADER:
            return ""
        if not is_header_name(name):
            raise ValidationError("Enter the name of the header, for example X-Api-Key.")
        if not may_carry(name):
            raise ValidationError("The gateway sets this header itself. Enter another.")
        return name

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        if "url" in self.fields and "url" in values:
            values["private"] = self._private(values)
            if upstream_guard().program_at(values["url"]) and values.get("auth_type", AuthType.NONE) != AuthType.NONE:
                self.add_error("auth_type", NO_CREDENTIAL)
        return values

    def _private(self, values: dict[str, Any]) -> bool | None:
        """Return whether the server may be at a private address; None if unknown."""
        if self.server is None or values["url"] != self.server.url:
            return self._leads_inside  # For a new URL, the addresses of its host decide.
        # The form's box decides, unless it is not ticked and the stored value is None.
        if self.server.private is not None or values.get("private"):
            return bool(values.get("private"))
        return leads_inside(values["url"])


def _others(server: Server | None) -> ServerQuerySet:
    rows = Server.objects.live()
    return rows.exclude(pk=server.pk) if server else rows


def is_taken(name: str) -> bool:
    """Return True if a server has this name. Archived servers are ignored."""
    return _others(None).filter(named(name)).exists()


NO_COMMAND = (
    "This is a command that starts a server on one computer (stdio). The gateway calls servers over HTTP: add the "
    "command to the runner.yaml of a runner, or enter a URL such as https://mcp.example.com/mcp."
)
NO_CREDENTIAL = (
    "You cannot enter a credential for a program of the runner. The runner.yaml file says where the program's secrets "
    "come from."
)
PROGRAMS = frozenset(
    "npx npm node bunx bun deno uvx uv pipx python python3 docker podman sh bash cmd java go".split()  # noqa: SIM905
)


def _is_command(text: str) -> bool:
    """True if `text` is the configuration of a local server: a command, or JSON that contains one."""
    first = text.strip("\"'").partition(" ")[0].rpartition("/")[2].removesuffix(".exe")
    return "://" not in text.partition(" ")[0] and (first in PROGRAMS or text.startswith("{"))


def _callable(url: str) -> tuple[str, bool]:
    """Validate a server's URL. Return the URL with a lower-case scheme, and whether the URL has a private address.

    Raises ValidationError.
    """
    if _is_command(url):
        raise ValidationError(NO_COMMAND)
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise ValidationError("This is not a URL. A URL looks like https://mcp.example.com/mcp.")
    try:
        inside = upstream_guard().check_now(url)
    except UrlRefused as refusal:
        raise ValidationError(str(refusal)) from None
    scheme, _, rest = url.partition(":")
    if urlsplit(url).fragment:
        raise ValidationError("Remove the # and everything after it.")
    return f"{scheme.lower()}:{rest}", inside


class SecretForm(forms.Form):
    """Form for a credential of one server. Write-only: the page never shows the stored credential."""

    secret = forms.CharField(
        max_length=4000,
        strip=True,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "spellcheck": "false"}),
        help_text="Stored encrypted. It can be replaced but not shown.",
    )

    def __init__(self, *args: Any, server: Server, **options: Any) -> None:
        super().__init__(*args, **options)
        self.server = server
        header = server.auth_type == AuthType.HEADER
        self.fields["secret"].label = f"Value of {server.header_name}" if header else "Bearer token"

    def clean_secret(self) -> str:
        secret = str(self.cleaned_data["secret"])
        if not fits_a_header(secret):
            raise ValidationError("A credential is one line of printable ASCII characters.")
        if self.server.auth_type != AuthType.HEADER and secret.lower().startswith("bearer "):
            raise ValidationError("Leave out the word Bearer; the gateway adds it.")
        return secret


class Trial(forms.Form):
    """Base of forms that test a credential at its server. A refused credential is stored only if `keep` is ticked."""

    keep = forms.BooleanField(
        label="Keep it anyway", required=False, help_text="The credential was not stored. To keep it, paste it again."
    )

    refusal = ""  # The server's reason for refusing the credential.

    def judge(self, refusal: str, field: str, server: str) -> None:
        """Store `refusal`, the server's reason for refusing the credential; "" if the server did not refuse it.

        Unless `keep` is ticked, a refusal is also added as an error of `field`.
        """
        self.refusal = refusal
        if refusal and not self.cleaned_data.get("keep"):
            self.add_error(field, f"{server} {refusal}. Use another credential, or keep this one anyway.")


class TriedSecretForm(Trial, SecretForm):
    """Form that tests a credential before it is stored. `refusal` is set if the server refused the credential."""

    def clean(self) -> dict[str, Any]:
        values = super().clean() or self.cleaned_data
        if "secret" in values and not self.errors:
            from servers.discovery import refusal_of  # noqa: PLC0415  (the import opens a file for metrics)

            self.judge(refusal_of(self.server, values["secret"]), "secret", self.server.name)
        values.pop("keep", None)
        return values | {"refusal": self.refusal}


class SharedLabel(forms.Form):
    """Form for the label of a shared identity, such as a service account."""

    server: Server
    label = forms.CharField(max_length=80, help_text="Shown in logs and in lists of credentials.")

    def clean_label(self) -> str:
        label = str(self.cleaned_data["label"])
        if Identity.objects.live().shared().filter(server=self.server, label=label).exists():
            raise ValidationError(LABEL_TAKEN)
        return label


class SharedIdentityForm(SharedLabel, TriedSecretForm):
    """Form for a service account: a credential that all people share."""

    field_order = ("label", "secret", "keep")


class SharedSignInForm(SharedLabel):
    """Form for a service account that signs in at the server's issuer."""

    def __init__(self, *args: Any, server: Server, **options: Any) -> None:
        super().__init__(*args, **options)
        self.server = server


def shared_identity_to_renew() -> models.Q:
    """Return a condition that matches servers with a shared identity that needs attention.

    The identity was refused by its server, or it needs a new sign-in or a confirmation.
    """
    return models.Q(pk__in=Identity.objects.shared().needing_attention().values("server"))


class ServerFilter(ListFilter):
    health = forms.MultipleChoiceField(required=False, choices=Health.choices)
    auth = forms.MultipleChoiceField(required=False, choices=AuthType.choices)
    identities = forms.BooleanField(required=False)  # If set, only servers whose shared identity has to be renewed.

    def narrow(self, rows: ServerQuerySet) -> ServerQuerySet:
        servers = rows.matching(self.values.get("q", ""))
        if health := self.values.get("health"):
            servers = servers.filter(enabled=True, health__in=health)  # The health of disabled servers is outdated.
        if auth := self.values.get("auth"):
            servers = servers.filter(auth_type__in=auth)
        if self.values.get("identities"):
            servers = servers.filter(shared_identity_to_renew())
        return servers
