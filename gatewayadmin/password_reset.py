"""Setting a new password after a reset."""

from __future__ import annotations

from typing import Any

from allauth.account.views import PasswordResetFromKeyView
from django.db import transaction
from django.http import HttpResponse

from connections.models import Connection, RevokeReason


class SetPassword(PasswordResetFromKeyView):  # type: ignore[misc]
    """Whoever lost a password may have lost more: what acts as them ends with it (R3.20)."""

    def form_valid(self, form: Any) -> HttpResponse:
        with transaction.atomic():
            response: HttpResponse = super().form_valid(form)
            own = Connection.objects.filter(user=self.reset_user)
            own.revoke_all(by=self.reset_user, reason=RevokeReason.PASSWORD_RESET)
        return response
