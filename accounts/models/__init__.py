"""Users with their roles, teams and API keys, and the workspace settings."""

from accounts.models.api_keys import ApiKey, ApiKeyQuerySet, KeyEnd
from accounts.models.attempts import Attempt
from accounts.models.roles import Role, permissions_of
from accounts.models.saved_views import SavedView
from accounts.models.schema_version import SchemaVersion
from accounts.models.teams import Team
from accounts.models.users import User, make_first_owner
from accounts.models.workspace import NewAppPolicy, WorkspaceSettings

__all__ = [
    "ApiKey",
    "ApiKeyQuerySet",
    "Attempt",
    "KeyEnd",
    "NewAppPolicy",
    "Role",
    "SavedView",
    "SchemaVersion",
    "Team",
    "User",
    "WorkspaceSettings",
    "make_first_owner",
    "permissions_of",
]
