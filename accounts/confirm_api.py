"""POST /api/me/confirm: confirms the password before sensitive operations."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar

from allauth.account.internal.flows.reauthentication import reauthenticate_by_password
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.sign_in import ConfirmPasswordForm
from accounts.sign_in_limits import try_as
from ui.errors import TryLater
from ui.operations import RequestBody, operation
from ui.rest import ApiError, Problem, Resource, checked


class Confirmation(RequestBody):
    """Your password."""

    password = serializers.CharField(trim_whitespace=False, max_length=4096, help_text="Your password.")


class Confirm(Resource):
    """For 15 minutes, this session may do what takes a confirmed password."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        TryLater: Problem(HTTPStatus.TOO_MANY_REQUESTS, "throttled"),
    }

    @operation(needs=None, body=Confirmation, answer=HTTPStatus.NO_CONTENT, conflicts=True)
    def confirm(self, request: Request) -> Response:
        """Confirm your password."""
        try_as(self.me, "password again")  # Shares its limit with the page.
        typed = self.body()
        if getattr(request.auth, "is_api_key", False) or not self.me.has_usable_password():
            raise ApiError(HTTPStatus.CONFLICT, "no_password", "There is no password to confirm.")
        checked(ConfirmPasswordForm(typed, user=self.me))
        reauthenticate_by_password(request)
        return Response(status=HTTPStatus.NO_CONTENT)
