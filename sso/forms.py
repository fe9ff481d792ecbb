"""The settings form of the organisation's sign-in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from accounts.models import Role, Team
from sso.errors import ProviderError
from sso.models import LONGEST_GROUP, GroupRule, Mode, Provider
from sso.saml.settings import LONGEST_ATTRIBUTE, NameIdFormat, Protocol
from wire.oauth_client import MOST_BYTES

OIDC_ONLY = ("issuer", "client_id", "secret", "scopes", "signs_out_there")
SAML_ONLY = (
    "metadata_url",
    "metadata_xml",
    "name_id_format",
    "email_attribute",
    "name_attribute",
    "signs_requests",
    "takes_encrypted",
    "new_decryption_key",
    "takes_unsolicited",
)
MORE_ROWS = 3  # Empty rows for new rules.


class RuleForm(forms.Form):
    """A group rule; ignored without a group."""

    group = forms.CharField(max_length=LONGEST_GROUP, required=False)
    role = forms.ModelChoiceField(Role.objects.all(), required=False, empty_label="No role")
    team = forms.ModelChoiceField(Team.objects.all(), required=False, empty_label="No team")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, field in self.fields.items():
            label = "Group" if name == "group" else f"{name.capitalize()} of the group"
            field.widget.attrs |= {"class": "input", "aria-label": label}
        self.fields["group"].widget.attrs |= {"autocomplete": "off", "data-mono": True, "placeholder": "Group"}


class ProviderForm(forms.Form):
    """The settings of the identity provider and the group rules."""

    protocol = forms.ChoiceField(choices=Protocol.choices, required=False, widget=forms.RadioSelect)
    mode = forms.ChoiceField(label="Sign-in there", choices=Mode.choices, widget=forms.RadioSelect)
    name = forms.CharField(label="Name", max_length=60, required=False, help_text="On the button: “Sign in with …”.")
    issuer = forms.CharField(
        max_length=500,
        required=False,
        widget=forms.TextInput(attrs={"inputmode": "url"}),
        help_text="As the provider calls itself. Inside GATEWAY_PRIVATE_UPSTREAMS it may be http://.",
    )
    client_id = forms.CharField(label="Client ID", max_length=255, required=False)
    secret = forms.CharField(
        label="Client secret",
        max_length=500,
        required=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    scopes = forms.CharField(
        max_length=300,
        required=False,
        help_text="What is asked for. Some providers tell groups only for a scope of their own.",
    )
    metadata_url = forms.CharField(
        label="Address of its metadata",
        max_length=500,
        required=False,
        widget=forms.TextInput(attrs={"inputmode": "url"}),
        help_text="Read when you save, and every hour when people sign in: new certificates need nothing here.",
    )
    metadata_xml = forms.CharField(
        label="Or the metadata themselves",
        max_length=MOST_BYTES,
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false", "autocomplete": "off"}),
        help_text="XML, where the provider has no address for it or this gateway cannot reach it.",
    )
    name_id_format = forms.ChoiceField(
        label="What it calls people (NameID)", choices=NameIdFormat.choices, required=False
    )
    email_attribute = forms.CharField(label="Attribute with the e-mail", max_length=LONGEST_ATTRIBUTE, required=False)
    name_attribute = forms.CharField(label="Attribute with the name", max_length=LONGEST_ATTRIBUTE, required=False)
    signs_requests = forms.BooleanField(
        label="Sign our requests",
        required=False,
        help_text="Its certificate is in our metadata. Only with it, and where the provider refuses unsigned ones, can "
        "people confirm sensitive changes there. Switched off and on again, there is a new key.",
    )
    takes_encrypted = forms.BooleanField(
        label="Take encrypted assertions",
        required=False,
        help_text="The certificate to encrypt for is in our metadata. They have to be signed inside, as ever.",
    )
    new_decryption_key = forms.BooleanField(
        label="Make a new key to encrypt for",
        required=False,
        help_text="The one there is opens what is encrypted for it until there is another new one.",
    )
    takes_unsolicited = forms.BooleanField(
        label="Let people begin at the provider",
        required=False,
        help_text="From a tile on its page. They are asked here whether they want to sign in.",
    )
    groups_claim = forms.CharField(
        label="Groups claim or attribute",
        max_length=100,
        help_text="Where the provider says which groups somebody is in.",
    )
    default_role = forms.ModelChoiceField(
        Role.objects.all(),
        label="Role of everybody else",
        required=False,
        empty_label="No entry",
        help_text="For whom no rule gives a role.",
    )
    links_by_email = forms.BooleanField(
        label="Link people by a verified e-mail",
        required=False,
        help_text="Whoever the provider vouches for with a verified address becomes the person who has it here. "
        "Otherwise people link their account themselves, on their profile.",
    )
    signs_out_there = forms.BooleanField(
        label="Sign out there too",
        required=False,
        help_text="Whoever signed in there and signs out here is led on to the provider, which ends its own session.",
    )
    domains = forms.CharField(
        label="E-mail domains",
        required=False,
        help_text="Your organisation's, between commas. New people need an address in these, or one that the provider "
        "verified. While sign-in there is enforced, these addresses have no password. When you save that, "
        "sessions of theirs that began with one end, yours too unless you are a break-glass owner.",
    )

    def __init__(self, data: Any, *, provider: Provider) -> None:
        aside = ("secret", "domains", "metadata_xml", "new_decryption_key")
        initial = {name: getattr(provider, name) for name in self.base_fields if name not in aside}
        if provider.speaks_saml:
            initial |= {"issuer": "", "client_id": ""}  # With SAML these are shown next to its other fields.
        super().__init__(data, initial=initial | {"domains": ", ".join(provider.domains)})
        self.provider = provider
        if provider.has_secret and not provider.speaks_saml:
            self.fields["secret"].help_text = "Left empty, the one there is stays while the issuer does."
        if provider.certificates and not provider.metadata_url:
            self.fields["metadata_xml"].help_text = "Left empty, what was read before stays."
        rows = [rule._asdict() for rule in provider.rules]
        count = _count(data) if data is not None else len(rows) + MORE_ROWS
        rows += [{}] * (count - len(rows))
        self.rules = [RuleForm(data, initial=rows[at], prefix=f"rule-{at}") for at in range(count)]

    def is_valid(self) -> bool:
        return all([super().is_valid(), *(rule.is_valid() for rule in self.rules)])

    def values(self) -> dict[str, Any]:
        """Return the arguments of Provider.edit."""
        values = dict(self.cleaned_data)
        values["domains"] = values["domains"].replace(",", " ").split()
        values["protocol"] = values["protocol"] or self.provider.protocol
        for name in OIDC_ONLY if values["protocol"] == Protocol.SAML else SAML_ONLY:
            del values[name]
        if not values.get("name_id_format", True):
            del values["name_id_format"]
        given = [rule.cleaned_data for rule in self.rules]
        values["rules"] = [GroupRule(**rule) for rule in given if rule["group"] or rule["role"] or rule["team"]]
        return values

    def refuse(self, error: ProviderError) -> None:
        """Show the error next to its field."""
        self.add_error(error.field if error.field in self.fields else None, str(error))

    @property
    def provider_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in ("name", "protocol")]

    @property
    def oidc_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in OIDC_ONLY]

    @property
    def saml_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in SAML_ONLY]

    @property
    def entry_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in ("mode", "domains", "links_by_email")]


def _count(data: Mapping[str, str]) -> int:
    """Return the number of rule rows in submitted data."""
    count = 0
    while count < 300 and f"rule-{count}-group" in data:
        count += 1
    return count
