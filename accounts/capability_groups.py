"""Check-lists for people who grant capabilities, and the groups of capabilities that pages show."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from django import forms

from accounts.models import User
from capabilities import Capability

CAPABILITY_GROUPS: dict[str, tuple[Capability, ...]] = {
    "Apps and agents": (
        Capability.HOSTS_READ,
        Capability.HOSTS_TOGGLE,
        Capability.OAUTH_CONNECT,
        Capability.API_TOKENS_CREATE,
        Capability.API_TOKENS_READ,
        Capability.API_TOKENS_MANAGE,
    ),
    "Connections": (
        Capability.MCP_CONNECTIONS_READ,
        Capability.MCP_CONNECTIONS_REVOKE,
        Capability.CONNECTIONS_TOGGLE,
    ),
    "Gateways": (
        Capability.GATEWAYS_READ,
        Capability.GATEWAYS_USE,
        Capability.GATEWAYS_MANAGE,
        Capability.GATEWAYS_TOGGLE,
        Capability.RULES_READ,
        Capability.RULES_MANAGE,
        Capability.APPROVALS_DECIDE,
    ),
    "Servers and credentials": (
        Capability.SERVERS_READ,
        Capability.SERVERS_MANAGE,
        Capability.SERVERS_TOGGLE,
        Capability.IDENTITIES_READ,
        Capability.IDENTITIES_MANAGE,
    ),
    "Logs": (
        Capability.LOGS_READ,
        Capability.LOGS_PAYLOADS,
        Capability.AUDIT_READ,
        Capability.SINKS_READ,
        Capability.SINKS_MANAGE,
    ),
    "People and workspace": (
        Capability.PEOPLE_READ,
        Capability.PEOPLE_MANAGE,
        Capability.PROVISIONING_READ,
        Capability.PROVISIONING_MANAGE,
        Capability.WORKSPACE_READ,
        Capability.WORKSPACE_MANAGE,
    ),
}


@dataclass(frozen=True, slots=True)
class CapabilityCheckbox:
    """One checkbox of the check-list. `withheld` says why the checkbox is disabled, and is otherwise empty."""

    capability: Capability
    ticked: bool
    withheld: str

    @property
    def notes(self) -> str:
        return notes_on(self.capability)


def check_list(
    editor: User, ticked: Collection[Capability], withheld: str = ""
) -> Iterator[tuple[str, list[CapabilityCheckbox]]]:
    """Yield each area with its checkboxes. A checkbox is disabled if `editor` lacks the capability.

    If `withheld` contains a reason, all checkboxes are disabled.
    """
    for area, capabilities in CAPABILITY_GROUPS.items():
        yield (
            area,
            [
                CapabilityCheckbox(capability, capability in ticked, withheld or _withheld(editor, capability))
                for capability in capabilities
            ],
        )


def notes_on(capability: Capability) -> str:
    """Return in words what `capability` allows and which capabilities it includes.

    The text also lists the actions that need further capabilities besides `capability`.
    """
    notes = [capability.allows]
    if capability.includes:
        notes.append(f"Includes: {_listed(capability.includes)}.")
    notes += [f"To {act}, you also need: {_listed(others)}." for act, others in capability.beside]
    return " ".join(notes)


def _listed(capabilities: Iterable[Capability]) -> str:
    return ", ".join(capability.label for capability in capabilities)


def _withheld(editor: User, capability: Capability) -> str:
    return "" if editor.has_perm(capability) else "You do not have this capability yourself."


class ChecksCapabilities(forms.Form):
    """A form with a check-list of capabilities. The capabilities in `at_first` are ticked when the form opens."""

    at_first: frozenset[Capability] = frozenset()
    capabilities = forms.MultipleChoiceField(
        required=False, choices=[(capability.slug, capability.label) for capability in Capability]
    )

    def clean_capabilities(self) -> frozenset[Capability]:
        return Capability.named(self.cleaned_data["capabilities"])

    @property
    def ticked(self) -> frozenset[Capability]:
        return (
            Capability.named(self["capabilities"].data or ())
            if self.is_bound and not self.fields["capabilities"].disabled
            else self.at_first
        )
