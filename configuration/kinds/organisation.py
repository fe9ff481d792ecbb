"""The organisation's sign-in settings in configuration files. SAML is left out, because it has keys and metadata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from capabilities import Capability
from configuration.fields import Field, choice, flag, names, secret, text
from configuration.kinds.base import Change, Key, Kind, World, reference_for
from sso.models import LONGEST_GROUP, SEES_SETTINGS, SETS_UP, TERMS, GroupRule, Mode, Provider
from wire.cipher import Undecryptable

if TYPE_CHECKING:
    from accounts.models import User

NAMED = {"role": "roles", "team": "teams"}
RULE = {
    "type": "object",
    "properties": {
        "group": {
            "type": "string",
            "minLength": 1,
            "maxLength": LONGEST_GROUP,
            "description": "Group at the provider.",
        },
        **{name: {"type": "string", "maxLength": 80, "description": f"The {name} to give."} for name in NAMED},
    },
    "required": ["group"],
    "additionalProperties": False,
}
RULES = Field(
    "rules",
    "Each rule names a `group`, and gives the people of this group a `role`, a `team` or both. The first matching rule "
    "with a role sets the role. Every matching rule adds its team.",
    {"type": "array", "items": RULE, "maxItems": 300},
    "Write a list such as [{group: engineers, role: Developer, team: Engineering}].",
    [],
)


class OrganisationKind(Kind):
    name, noun, key = "organisation", "sign-in by the organisation", ""
    about = (
        "Sign-in by the organisation through OpenID Connect. SAML can be set up only on the settings page, not in "
        "a file. API keys cannot change these settings."
    )
    sees = SEES_SETTINGS
    manages = Capability.WORKSPACE_MANAGE
    refuses_keys = True
    fields = (
        text("name", "Name on the sign-in button.", 60, ""),
        choice("mode", "Whether people may or must sign in at the provider.", Mode, Mode.OFF),
        text("issuer", "The provider's issuer URL.", 500, ""),
        text("client_id", "Client ID of this workspace at the provider.", 255, ""),
        secret("client_secret", "Reference to the client secret."),
        text("scopes", "Scopes to request.", 300, "openid profile email"),
        flag("signs_out_there", "Whether signing out here also signs out of the provider.", False),
        names("domains", "E-mail domains of your organisation.", 253),
        flag(
            "links_by_email",
            "Whether a sign-in with a verified e-mail address is linked to the person with this address.",
            False,
        ),
        text("groups_claim", "Claim with a person's groups.", 100, "groups"),
        text(
            "default_role",
            "Role of people who get no role from a rule. If empty, these people cannot sign in. If no rule names a "
            "role, only new people get the default role, and people with an account keep their role.",
            80,
            "",
            refers_to="roles",
        ),
        RULES,
    )

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        row = Provider.load()
        if row.speaks_saml:
            yield (), row, {}
            return
        values = {one.name: getattr(row, one.name, None) for one in self.fields}
        values |= {"domains": sorted(row.domains), "rules": [_written(rule) for rule in row.rules]}
        values["default_role"] = row.default_role.name if row.default_role else ""
        values["client_secret"] = reference_for("organisation", "client secret") if row.has_secret else None
        yield (), row, {name: value for name, value in values.items() if value is not None}

    def secret_of(self, row: Any, name: str) -> str:
        try:
            return str(row.secret)
        except Undecryptable:
            return ""

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        if change.row.speaks_saml:
            yield (
                "name",
                "Sign-in uses SAML, and files cannot contain settings of SAML. Remove “organisation” from the file.",
            )
            return
        for rule in change.values["rules"] if "rules" in change.fields else ():
            for name, kind in NAMED.items():
                if rule.get(name) and not world.planned(kind, rule[name]):
                    yield "rules", f"There is no {name} “{rule[name]}”. Add it to “{kind}”, or correct the name."
        if "issuer" in change.fields and change.values.get("client_secret") and not change.secrets:
            yield "client_secret", f"Set {change.values['client_secret']}: a new issuer needs a new client secret."

    def needs(self, change: Change) -> set[Capability]:
        return set(Capability) if TERMS & change.fields.keys() else set(SETS_UP)

    def edit(self, change: Change, world: World, by: User) -> None:
        fields = {name: value for name, value in change.after().items() if name != "client_secret"}
        if "default_role" in fields:
            fields["default_role"] = world.row("roles", fields["default_role"]) if fields["default_role"] else None
        if "rules" in fields:
            fields["rules"] = [_rule(rule, world) for rule in fields["rules"]]
        Provider.edit(by=by, secret=change.secrets.get("client_secret", ""), **fields)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        if change.after().get("mode") != Mode.ENFORCED:
            return ""
        return (
            "Signs out everyone in the organisation's domains who signed in with a password, except break-glass owners."
        )


def _written(rule: GroupRule) -> dict[str, str]:
    named = {"role": rule.role.name if rule.role else "", "team": rule.team.name if rule.team else ""}
    return {"group": rule.group} | {name: value for name, value in named.items() if value}


def _rule(rule: dict[str, str], world: World) -> GroupRule:
    role = world.row("roles", rule["role"]) if rule.get("role") else None
    team = world.row("teams", rule["team"]) if rule.get("team") else None
    return GroupRule(rule["group"].strip(), role, team)
