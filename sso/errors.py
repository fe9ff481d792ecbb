"""Errors of the organisation's sign-in: settings that are refused, and people who are not admitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accounts.models import User


class ProviderError(Exception):
    """The settings of the organisation's sign-in are refused; the message says why. `field` is the form field."""

    field = ""


class BadProviderUrl(ProviderError):
    """The identity provider may not have this URL."""

    field = "issuer"


class BadDomain(ProviderError):
    """Name the e-mail domains whose people sign in at the organisation only, such as example.com."""

    field = "domains"


class BadScopes(ProviderError):
    """Scopes are words with blanks between them, and `openid` is one of them."""

    field = "scopes"


class Incomplete(ProviderError):
    """Name the provider, its issuer and the client before sign-in is offered."""

    field = "mode"


class NoBreakGlass(ProviderError):
    """Nobody could sign in while the provider is down. Make an owner with a password and a second factor a break-glass
    owner first, on their page."""

    field = "mode"


class BadRules(ProviderError):
    """A group rule names a group, and a role or a team."""

    field = "rules"


class BadSamlMetadata(ProviderError):
    """The provider's SAML metadata cannot be used; the message says why."""

    field = "metadata_url"


class BadPasted(BadSamlMetadata):
    """The pasted metadata cannot be used; the message says why."""

    field = "metadata_xml"


class NeedsExtra(ProviderError):
    """SAML takes the extra “saml”: pip install 'gateway-admin[saml]', then start the gateway again."""

    field = "protocol"


class SamlHasNoSecret(ProviderError):
    """SAML has no client secret."""

    field = "secret"


class ChangedThere(ProviderError):
    """Somebody else changed the provider at this moment. Look at it, and try again."""


class AlreadyLinked(ProviderError):
    """This account of the organisation belongs to somebody else here, or you are linked to another one."""


class NeedsPassword(ProviderError):
    """Without a password here, this account signs in at the organisation only. Choose a password first."""


_EMAIL = (
    "Your e-mail address cannot be used yet: your organisation does not confirm that it is yours, or somebody here has "
    "it already. If you were invited, open the link in the mail and sign in from there. If you have a password here, "
    "sign in with it and link your account on your profile. Otherwise ask an administrator of this workspace."
)
# The last two are identical, so that nobody can find out which addresses have an account.
ADVICE = {
    "deactivated": "Your account in this workspace is disabled. Ask an administrator of this workspace to enable it.",
    "no_role": "Your organisation signed you in, but none of your groups there has a role in this workspace. Ask an "
    "administrator of this workspace for a role, or whoever looks after accounts there to add you to such a group.",
    "too_many_groups": "Your organisation sent no list of your groups, because you are in too many. Ask an "
    "administrator of this workspace to have it send only the groups of this application.",
    "no_email": "Your organisation sent no e-mail address for you. Ask whoever looks after accounts there to add one.",
    "email_not_verified": _EMAIL,
    "email_taken": _EMAIL,
}


class NoEntry(Exception):
    """The provider authenticated the person, but they are not admitted; `advice` is shown to them."""

    def __init__(self, reason: str, person: User | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.person = person
        self.advice = ADVICE[reason]
