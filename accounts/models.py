"""Who people are: users, their role, their teams, their API keys; and the settings they share."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar, Self
from uuid import uuid4

from django.contrib.auth import get_backends
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import Permission
from django.contrib.postgres.fields import ArrayField
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability
from capabilities.roles import BUILT_IN


class RoleManager(models.Manager["Role"]):
    def make_built_in(self) -> None:
        """Make the built-in roles that are missing, and give the locked one all capabilities again."""
        for built_in in BUILT_IN:
            role, made = self.get_or_create(name=built_in.name, defaults={"locked": built_in.locked})
            if made or built_in.locked:
                role.permissions.set(permissions_of(built_in.capabilities))


def permissions_of(capabilities: Iterable[Capability]) -> models.QuerySet[Permission]:
    """The permission rows behind `capabilities`."""
    wanted = Q(pk=None)
    for capability in capabilities:
        app_label, codename = capability.split(".")
        wanted |= Q(content_type__app_label=app_label, codename=codename)
    return Permission.objects.filter(wanted)


class Role(models.Model):
    """A named bundle of capabilities; each user holds one (requirements 4.1)."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=80)
    locked = models.BooleanField(default=False, editable=False)
    permissions = models.ManyToManyField(Permission, blank=True, related_name="roles")

    objects: ClassVar[RoleManager] = RoleManager()

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(Lower("name"), name="role_name_is_unique"),)

    def __str__(self) -> str:
        return self.name


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email=(username or "").lower())


class User(AbstractBaseUser):
    """A person who signs in with an e-mail; the one a connection acts as. Never deleted."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    email = models.EmailField(max_length=254, unique=True)
    display_name = models.CharField(max_length=120, blank=True)
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False)
    is_superuser = models.BooleanField(default=False)
    role = models.ForeignKey(Role, models.PROTECT, null=True, blank=True, related_name="users")
    password_changed_at = models.DateTimeField(null=True, blank=True)
    session_epoch = models.PositiveIntegerField(default=0)
    date_joined = models.DateTimeField(default=timezone.now)

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects: ClassVar[UserManager] = UserManager()

    class Meta:
        ordering = ("email",)
        permissions = (("manage_people", "Manage people"),)
        constraints = (models.CheckConstraint(condition=Q(email=Lower("email")), name="user_email_is_lower_case"),)

    def __str__(self) -> str:
        return self.email

    @property
    def name(self) -> str:
        """The name to greet with."""
        return self.display_name or self.email

    @cached_property
    def permissions(self) -> frozenset[str]:
        """The Django permissions the role grants, as `app.codename`."""
        if self.role_id is None:
            return frozenset()
        rows = Permission.objects.filter(roles=self.role_id).values_list("content_type__app_label", "codename")
        return frozenset(f"{app_label}.{codename}" for app_label, codename in rows)

    def set_password(self, raw_password: str | None) -> None:
        super().set_password(raw_password)
        self.password_changed_at = timezone.now()

    def has_perm(self, perm: str, obj: models.Model | None = None) -> bool:
        return any(backend.has_perm(self, perm, obj) for backend in get_backends())

    def has_perms(self, perm_list: Iterable[str], obj: models.Model | None = None) -> bool:
        return all(self.has_perm(perm, obj) for perm in perm_list)

    def has_module_perms(self, app_label: str) -> bool:
        return any(permission.startswith(f"{app_label}.") for permission in self.get_all_permissions())

    def get_all_permissions(self) -> frozenset[str]:
        """Every permission this user holds now; a superuser holds all there are."""
        if not self.is_active:
            return frozenset()
        if not self.is_superuser:
            return self.permissions
        rows = Permission.objects.values_list("content_type__app_label", "codename")
        return frozenset(f"{app_label}.{codename}" for app_label, codename in rows)


class Team(models.Model):
    """A named set of users; a gateway may be open to some teams only."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=80)
    users = models.ManyToManyField(User, blank=True, related_name="teams")

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(Lower("name"), name="team_name_is_unique"),)

    def __str__(self) -> str:
        return self.name


class NewAppPolicy(models.TextChoices):
    ALLOW = "allow", "Allow automatically"
    APPROVE = "approve", "Wait for approval"


class WorkspaceSettings(models.Model):
    """The one row of settings of this workspace."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    name = models.CharField(max_length=80, default="Gateway Admin")
    public_base_url = models.CharField(max_length=200, blank=True, editable=False)
    allow_non_expiring_tokens = models.BooleanField(default=False)
    new_app_policy = models.CharField(max_length=10, choices=NewAppPolicy, default=NewAppPolicy.ALLOW)
    record_payloads = models.BooleanField(default=False)
    payload_limit_bytes = models.PositiveIntegerField(default=16384)
    log_retention_days = models.PositiveIntegerField(default=90)
    oauth_access_token_seconds = models.PositiveIntegerField(default=3600)
    oauth_refresh_idle_days = models.PositiveIntegerField(default=30)
    calls_per_minute = models.PositiveIntegerField(null=True, blank=True)
    token_calls_per_minute = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "workspace settings"
        permissions = (("manage_workspace", "Manage workspace settings"),)
        constraints = (
            models.CheckConstraint(condition=Q(id=1), name="workspace_settings_is_one_row"),
            models.CheckConstraint(
                condition=Q(oauth_access_token_seconds__range=(60, 3600)),
                name="oauth_access_tokens_live_an_hour_at_most",
            ),
            models.CheckConstraint(condition=Q(log_retention_days__gte=1), name="logs_are_kept_a_day_at_least"),
        )

    def __str__(self) -> str:
        return self.name

    @classmethod
    def load(cls) -> Self:
        """The settings as they are in the database now."""
        return cls.objects.get_or_create(pk=1)[0]


class ApiKey(models.Model):
    """A person's key for the REST API (`gwp_`): a subset of its owner's capabilities, never used at /mcp."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    user = models.ForeignKey(User, models.PROTECT, related_name="api_keys")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12)
    digest = models.BinaryField(unique=True, max_length=32)
    key_id = models.CharField(max_length=8)
    capabilities = ArrayField(models.CharField(max_length=80), default=list)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at",)
        verbose_name = "API key"
        constraints = (
            models.UniqueConstraint(
                "user", Lower("name"), condition=Q(revoked_at=None), name="live_api_key_name_is_unique"
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"


def make_first_owner(email: str, password: str) -> User | None:
    """Make the first owner, a Super admin and staff, when the workspace has no user yet; else None."""
    with transaction.atomic():
        if User.objects.exists():
            return None
        role = Role.objects.get(name=BUILT_IN[0].name)
        owner = User.objects.create_user(email, password, display_name="Owner", role=role, is_staff=True)
        Event.objects.record(Action.USER_CREATED, owner, by=None)
        return owner
