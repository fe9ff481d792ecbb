"""Errors of the organisation's sign-in: settings and answers that are refused, and people who are not admitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from accounts.models import User


class ProviderError(Exception):
    """A setting or a link to an account is refused, or the identity provider fails; the message says why."""

    field = ""  # The form field, if there is one.


class BadProviderUrl(ProviderError):
    """This URL is not allowed for an identity provider."""

    field = "issuer"


class BadDomain(ProviderError):
    """Enter at most 50 e-mail domains, such as example.com. Enforced sign-in needs at least one."""

    field = "domains"


class BadScopes(ProviderError):
    """Enter scopes with spaces between them; `openid` must be one of them."""

    field = "scopes"


class Incomplete(ProviderError):
    """Before you offer sign-in, enter the provider's name, issuer and client ID."""

    field = "mode"


class NoBreakGlass(ProviderError):
    """With these settings, nobody could sign in while the provider is down.
    First choose an owner who has a password and a second factor. On this owner's page, a Super admin then presses
    “Make break-glass owner”."""

    field = "mode"


class BadRules(ProviderError):
    """Each group rule needs a group of at most 200 characters, and a role or a team."""

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
    """Somebody else just changed the identity provider. Check the settings, and try again."""


class AlreadyLinked(ProviderError):
    """This account is linked to somebody else here, or you are linked to another account. Ask an administrator."""


class NeedsPassword(ProviderError):
    """You have no password here, so you could not sign in after unlinking. Set a password first."""


class MustStayLinked(ProviderError):
    """You have to sign in at your organisation, so your account there stays linked."""


class ProviderDown(ProviderError):
    """The identity provider gave no valid answer; the message says why."""


# --- People who are not signed in -------------------------------------------------------------------------------------


class Advice(NamedTuple):
    """Advice for a person whose sign-in failed. It reveals nothing about other people's accounts."""

    text: str
    is_for_administrators: bool = False


NOT_OFFERED = Advice(
    "Single sign-on is disabled in this workspace. Sign in with your password, or ask an administrator of this "
    "workspace."
)
UNAVAILABLE = Advice(
    "Signing in with your organisation does not work at the moment. Try again in a few minutes. If it still fails, "
    "tell an administrator of this workspace."
)
FAILED = Advice(
    "This workspace could not use the answer of your organisation. Try again. If it fails again, tell an administrator "
    "of this workspace."
)
AGAIN = Advice(
    "The sign-in took too long, was started in another browser, or was already used. Or the settings changed "
    "meanwhile. Go back and sign in again."
)
HERE_FIRST = Advice(
    "Start signing in here, not on the page of your organisation. Go back and press the sign-in button."
)
ASK_THERE = Advice(
    "Your organisation did not sign you in to this workspace. Ask its IT administrator for access to this application."
)
SET_UP = Advice(
    "This workspace did not accept the answer of your organisation. The sign-in settings here and at your organisation "
    "do not match. Tell an administrator of this workspace. The admin events have the details.",
    is_for_administrators=True,
)
LINK_AGAIN = Advice(
    "You are no longer signed in here, so nothing was linked. Sign in, and link your account on your profile again."
)
OTHER_ACCOUNT = Advice(
    "The account that you just used at your organisation is not linked to you here. Go back, and confirm with the "
    "account that is linked to you."
)
CONFIRM_HERE = Advice("Go back, and confirm with your password or second factor of this workspace.")
NOT_ASKED = Advice(
    "The answer of your organisation does not prove that you signed in there again, so the confirmation failed. Try "
    "again. If it fails again, ask an administrator of this workspace to check the settings of single sign-on."
)
CHANGED = "The settings of the provider changed during the sign-in."
SET_UP_REASONS = (
    *("malformed", "too_large", "encrypted", "not_decrypted", "weak_encryption", "not_signed", "weak_signature"),
    *("wrong_signature", "wrapped", "other_issuer", "other_audience", "other_recipient", "not_yet_valid"),
    *("not_confirmed", "no_name", "not_installed"),
)
# Keys are the reasons in admin events.
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
    "Your e-mail address cannot be used here yet. Your organisation does not confirm that the address is yours, or "
    "a person with this address already exists here. If you were invited, open the link in the mail and sign in from "
    "there. If you have a password here, sign in with it, and link your account on your profile. Otherwise ask an "
    "administrator of this workspace."
)
# The last two texts are identical, so that nobody can find out which addresses have an account.
ENTRY_ADVICE = {
    "deactivated": Advice(
        "Your account in this workspace is disabled. Ask an administrator of this workspace to enable it."
    ),
    "no_role": Advice(
        "Your organisation signed you in, but none of your groups there has a role in this workspace. Ask an "
        "administrator of this workspace for a role, or your organisation's IT administrator for a group with a role."
    ),
    "too_many_groups": Advice(
        "You are in so many groups that your organisation did not send them, so your role here is not known. Ask an "
        "administrator of this workspace to arrange that your organisation sends only the groups of this application."
    ),
    "no_email": Advice("Your organisation sent no e-mail address for you. Ask its IT administrator to add one."),
    "email_not_verified": _EMAIL,
    "email_taken": _EMAIL,
}


class SignInFailed(Exception):
    """The sign-in failed.

    The message is for events and the process log. The person sees `advice` instead, or FAILED if there is no advice.
    """

    reason = ""

    def __init__(self, words: str, advice: Advice | None = None) -> None:
        super().__init__(words)
        self.advice = advice


class ResponseRefused(SignInFailed):
    """The provider's answer is refused. The message is for administrators.

    `reason` is a key of RESPONSE_ADVICE. Neither the message nor `reason` contains personal data from the answer.
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
