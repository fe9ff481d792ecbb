"""The authentication backend. Sessions store the dotted path of the class, so moving it would sign everybody out."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.contrib.auth.backends import BaseBackend
from django.db.models import Exists, OuterRef, QuerySet, Subquery
from django.http import HttpRequest

from accounts.models import User, WorkspaceSettings
from approvals.models import Hold


class RoleBackend(BaseBackend):
    """Authenticates active users by e-mail and password. `User.has_perm` checks their permissions."""

    def authenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **credentials: Any,
    ) -> User | None:
        email = username or credentials.get("email")
        if not email or password is None:
            return None
        user = User.objects.filter(email=email.strip().lower()).first()
        if user is None:
            # Hash the password here too, so that the response time does not reveal whether the account exists.
            User().set_password(password)
            return None
        return user if user.check_password(password) and user.is_active else None

    def get_user(self, user_id: Any) -> User | None:
        return _active_people().filter(pk=user_id).first()


# Cached, because building this queryset takes longer than its query. Callers must filter it: once evaluated, the cached
# queryset would keep its rows.
@cache
def _active_people() -> QuerySet[User]:
    """Return the people who may sign in, with the values that accounts.required_sign_in and the menu need."""
    return (
        User.objects.select_related("role")
        .filter(is_active=True)
        .annotate(
            required_of_all=Subquery(WorkspaceSettings.objects.values("required_sign_in")),
            is_approver=Exists(User.approves.through.objects.filter(user=OuterRef("pk"))),
            is_asked_about_holds=Exists(Hold.objects.waiting().asking(OuterRef("pk"))),
        )
    )
