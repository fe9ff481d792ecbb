"""The settings form of the organisation's sign-in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.forms.models import fields_for_model

from accounts.models import Role, Team
from sso.errors import ProviderError
from sso.models import LONGEST_GROUP, OIDC_SETTINGS, SAML_SETTINGS, SETTINGS, GroupRule, Provider
from sso.saml.settings import Protocol
from wire.oauth_client import MOST_BYTES

MORE_ROWS = 3  # Empty rows for new rules.


class RuleForm(forms.Form):
    """A group rule. It is ignored if all fields are empty."""

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
    """The settings of the identity provider and the group rules. Most labels and help texts come from the model."""

    secret = forms.CharField(
        label="Client secret",
        max_length=500,
        required=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    metadata_xml = forms.CharField(
        label="Or the metadata themselves",
        max_length=MOST_BYTES,
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false", "autocomplete": "off"}),
        help_text="Paste the XML if the metadata have no URL, or if this gateway cannot reach the URL.",
    )
    new_decryption_key = forms.BooleanField(
        label="Create a new encryption key",
        required=False,
        help_text="Assertions encrypted for the current key are still accepted. Older keys are deleted.",
    )
    provider_settings = ("name", "protocol")
    oidc_settings = (*OIDC_SETTINGS, "secret")
    saml_settings = (*SAML_SETTINGS, "metadata_xml", "new_decryption_key")
    entry_settings = ("mode", "domains", "links_by_email")

    def __init__(self, data: Any, *, provider: Provider) -> None:
        urls = {name: forms.TextInput(attrs={"inputmode": "url"}) for name in ("issuer", "metadata_url")}
        radios = {"protocol": forms.RadioSelect(), "mode": forms.RadioSelect()}
        fields = fields_for_model(Provider, (*SETTINGS, "default_role"), widgets={**urls, **radios})
        fields["domains"] = forms.CharField(
            label=fields["domains"].label, required=False, help_text=fields["domains"].help_text
        )
        initial = {name: getattr(provider, name) for name in fields} | {"domains": ", ".join(provider.domains)}
        if provider.speaks_saml:
            initial |= {"issuer": "", "client_id": ""}  # With SAML, the page shows these entity IDs as text.
        super().__init__(data, initial=initial)
        self.fields |= fields
        for name in ("protocol", "scopes", "name_id_format"):
            self.fields[name].required = False
        self.fields["default_role"].empty_label = "None: refuse sign-in"  # type: ignore[attr-defined]
        self.provider = provider
        if provider.has_secret and not provider.speaks_saml:
            self.fields["secret"].help_text = "Leave empty to keep the saved secret."
        if provider.certificates and not provider.metadata_url:
            self.fields["metadata_xml"].help_text = "Leave empty to keep the saved metadata."
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
        for name in self.oidc_settings if values["protocol"] == Protocol.SAML else self.saml_settings:
            del values[name]
        if not values.get("name_id_format", True):
            del values["name_id_format"]
        given = [rule.cleaned_data for rule in self.rules]
        values["rules"] = [GroupRule(**rule) for rule in given if rule["group"] or rule["role"] or rule["team"]]
        return values

    def refuse(self, error: ProviderError) -> None:
        """Show the error next to the field concerned."""
        self.add_error(error.field if error.field in self.fields else None, str(error))

    def parts(self) -> dict[str, list[forms.BoundField]]:
        """The fields of the form, by section of the page."""
        names = {"provider": self.provider_settings, "oidc": self.oidc_settings, "saml": self.saml_settings}
        names |= {"entry": self.entry_settings}
        return {part: [self[name] for name in fields] for part, fields in names.items()}


def _count(data: Mapping[str, str]) -> int:
    """Return the number of rule rows in submitted data."""
    count = 0
    while count < 300 and f"rule-{count}-group" in data:
        count += 1
    return count
