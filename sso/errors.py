"""Errors of the organisation's sign-in: settings and answers that are refused, and people who are not admitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from accounts.models import User


class ProviderError(Exception):
    """The settings of the organisation's sign-in are refused; the message says why. `field` is the form field."""

    field = ""


class BadProviderUrl(ProviderError):
    """The identity provider may not have this URL."""

    field = "issuer"


class BadDomain(ProviderError):
    """Enter the e-mail domains whose people must sign in at the organisation, such as example.com."""

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
    """SAML needs the extra “saml”: pip install 'gateway-admin[saml]', then start the gateway again."""

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


class ProviderDown(ProviderError):
    """The identity provider does not answer, or not validly; the message says what is wrong."""


# --- People who are not signed in -------------------------------------------------------------------------------------


class Advice(NamedTuple):
    """Advice for a person whose sign-in failed. It reveals nothing about accounts."""

    text: str
    is_for_administrators: bool = False


AGAIN = Advice(
    "The sign-in took too long, was started in another browser, or was already used. Go back and sign in again."
)
HERE_FIRST = Advice(
    "Start signing in here, not on the page of your organisation. Go back and press the sign-in button."
)
ASK_THERE = Advice("Your organisation did not sign you in to this workspace. Ask its IT administrator.")
SET_UP = Advice(
    "Your organisation's answer was not accepted: its settings and those of this workspace do not match. Tell a "
    "workspace administrator; the admin events have the reason.",
    is_for_administrators=True,
)
SET_UP_REASONS = (
    *("malformed", "too_large", "encrypted", "not_decrypted", "weak_encryption", "not_signed", "weak_signature"),
    *("wrong_signature", "wrapped", "other_issuer", "other_audience", "other_recipient", "not_yet_valid"),
    *("not_confirmed", "no_name", "not_installed"),
)
# By the reason that admin events have.
RESPONSE_ADVICE = dict.fromkeys(SET_UP_REASONS, SET_UP) | {
    "not_begun_here": AGAIN,
    "took_too_long": AGAIN,
    "used_before": AGAIN,
    "expired": AGAIN,
    "provider_changed": AGAIN,
    "not_asked_for": HERE_FIRST,
    "refused_there": ASK_THERE,
}
_EMAIL = Advice(
    "Your e-mail address cannot be used yet: your organisation does not confirm that it is yours, or somebody "
    "else here uses it. If you were invited, open the link in the mail and sign in from there. If you have a "
    "password here, "
    "sign in with it and link your account on your profile. Otherwise ask an administrator of this workspace."
)
# The last two are identical, so that nobody can find out which addresses have an account.
ENTRY_ADVICE = {
    "deactivated": Advice(
        "Your account in this workspace is disabled. Ask an administrator of this workspace to enable it."
    ),
    "no_role": Advice(
        "Your organisation signed you in, but none of your groups there has a role in this workspace. Ask an "
        "administrator of this workspace for a role, or your organisation's IT administrator to add you to such a "
        "group."
    ),
    "too_many_groups": Advice(
        "Your organisation sent no list of your groups, because you are in too many. Ask an "
        "administrator of this workspace to have it send only the groups of this application."
    ),
    "no_email": Advice("Your organisation sent no e-mail address for you. Ask its IT administrator to add one."),
    "email_not_verified": _EMAIL,
    "email_taken": _EMAIL,
}


class SignInFailed(Exception):
    """The sign-in failed. The message is for events and the log; `advice`, if any, is shown to the person."""

    reason = ""

    def __init__(self, words: str, advice: Advice | None = None) -> None:
        super().__init__(words)
        self.advice = advice


class ResponseRefused(SignInFailed):
    """The provider's answer is refused: `reason` is a key of RESPONSE_ADVICE, the message is for administrators.

    Neither contains personal data of the answer.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words, RESPONSE_ADVICE[reason])
        self.reason = reason


class NoEntry(SignInFailed):
    """The provider authenticated the person, but they are not admitted."""

    def __init__(self, reason: str, person: User | None = None) -> None:
        super().__init__(reason, ENTRY_ADVICE[reason])
        self.reason = reason
        self.person = person
