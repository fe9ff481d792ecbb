"""The authentication backend. Sessions store the dotted path of the class, so moving it would sign everybody out."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.backends import BaseBackend
from django.db.models import Exists, OuterRef, Subquery
from django.http import HttpRequest

from accounts.models import User, WorkspaceSettings


class RoleBackend(BaseBackend):
    """Authenticates active users by e-mail and password. Users get permissions only through their role."""

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
            User().set_password(password)  # Takes as long as a real check, so response times do not reveal accounts.
            return None
        return user if user.check_password(password) and user.is_active else None

    def get_user(self, user_id: Any) -> User | None:
        people = User.objects.select_related("role").filter(pk=user_id, is_active=True)
        # With the person, so that no request needs another query for it (accounts.required_sign_in, the menu).
        return people.annotate(
            required_of_all=Subquery(WorkspaceSettings.objects.values("required_sign_in")),
            is_approver=Exists(User.approves.through.objects.filter(user=OuterRef("pk"))),  # type: ignore[attr-defined]
        ).first()

    def has_perm(self, user_obj: Any, perm: str, obj: object = None) -> bool:
        if not isinstance(user_obj, User) or not user_obj.is_active or obj is not None:
            return False
        if user_obj.narrowed_to is not None and perm not in user_obj.narrowed_to:
            return False
        return user_obj.is_superuser or perm in user_obj.permissions
