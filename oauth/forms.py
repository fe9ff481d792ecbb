"""Forms of the authorize flow."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from accounts.models import User
from servers.discovery import TRIAL_SECONDS, DiscoveryFailed, DiscoveryRefused, contact, refusal_of
from servers.forms import Trial
from servers.models import AnotherPlace, AuthType, Identity, Server

NEW = "new"
SCHEME = re.compile(r"\Abearer(\s+|\Z)", re.IGNORECASE)  # Removed from pasted tokens; the gateway adds it itself.


class IdentityForm(Trial):
    """Form to choose one of the person's own identities for a server, or to enter a new identity."""

    identity = forms.ChoiceField(required=False)
    label = forms.CharField(required=False, max_length=80)
    otherwise = ", or skip this server"  # The end of sentences that ask for a credential.
    secret = forms.CharField(required=False, max_length=4000, strip=True, widget=forms.PasswordInput)

    def __init__(self, *args: Any, server: Server, user: User, selected: str | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server, self.user = server, user
        self.own = list(Identity.objects.live().own(user).filter(server=server).not_refused_first())
        self.usable = [identity for identity in self.own if identity.is_usable]
        values = [str(identity.pk) for identity in self.usable] + ([NEW] if self.takes_new else [])
        self.fields["identity"].choices = [(value, value) for value in values]  # type: ignore[attr-defined]
        refused = {str(identity.pk) for identity in self.usable if identity.status == "refused"}
        likely = [value for value in values if value not in refused]
        self.initial.setdefault("identity", selected if selected in likely else next(iter(likely), ""))
        self.initial.setdefault("label", self._free_label())
        self.fields["secret"].label = self._secret_label()

    @property
    def takes_new(self) -> bool:
        """True if a secret can be entered; servers with OAuth use sign-in instead."""
        return self.server.takes_secret

    @property
    def picked(self) -> str:
        """The value of the selected radio button."""
        return str(self["identity"].value() or "")

    def _secret_label(self) -> str:
        if self.server.auth_type == AuthType.HEADER:
            return f"{self.server.name} {self.server.header_name}"
        return f"{self.server.name} token"

    def _free_label(self) -> str:
        base = self.user.email.partition("@")[0][:70]
        labels = {identity.label for identity in self.own}
        return next(label for n in range(1, 1000) if (label := base if n == 1 else f"{base}-{n}") not in labels)

    def clean_secret(self) -> str:
        secret: str = self.cleaned_data["secret"]
        if self.server.auth_type == AuthType.BEARER:
            secret = SCHEME.sub("", secret)
        if not (secret.isascii() and secret.isprintable()):
            raise ValidationError("This credential cannot be sent in a header. Copy it again, without line breaks.")
        return secret

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("identity") == NEW:
            if not cleaned.get("secret") and "secret" not in self.errors:
                self.add_error("secret", f"Paste your credential for {self.server.name}{self.otherwise}.")
            cleaned["label"] = cleaned.get("label") or self._free_label()
            if not self.errors:
                self.judge(refusal_of(self.server, cleaned["secret"]), "secret", self.server.name)
        elif not cleaned.get("identity") and "identity" not in self.errors:
            self.add_error("identity", f"Choose a credential{self.otherwise}.")
        elif not self.errors and self.chosen.status == "refused":
            self.judge(self._tried_again(), "identity", self.server.name)
        return cleaned

    @property
    def chosen(self) -> Identity:
        return next(one for one in self.usable if str(one.pk) == self.cleaned_data["identity"])

    def _tried_again(self) -> str:
        """Test the chosen identity again, because the server refused it before.

        Return the refusal; empty if the server accepts the identity or cannot be asked.
        """
        try:
            contact(self.server, self.chosen, TRIAL_SECONDS)
        except DiscoveryRefused as refusal:
            return str(refusal)
        except DiscoveryFailed:
            pass
        return ""

    def bring(self) -> str | None:
        """Return the id of the chosen identity, or store the new identity and return its id.

        If the new identity cannot be stored, add an error to the form and return None.
        """
        if self.cleaned_data["identity"] != NEW:
            return str(self.cleaned_data["identity"])
        new = {"label": self.cleaned_data["label"], "secret": self.cleaned_data["secret"], "refusal": self.refusal}
        try:
            with transaction.atomic():
                identity = Identity.objects.bring(server=self.server, owner=self.user, by=self.user, **new)
        except AnotherPlace as refusal:
            self.add_error("secret", str(refusal))
            return None
        except IntegrityError:
            self.add_error("label", "You already have a credential with this label.")
            return None
        return str(identity.pk)
