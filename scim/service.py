"""The SCIM protocol (RFC 7644), with defaults for required attributes that directories omit.

Imports the optional package, so only imported where /scim/v2/ is served.
"""

from __future__ import annotations

import json
from typing import Any

from scim2_models import (
    InvalidFilterException,
    InvalidPathException,
    InvalidSyntaxException,
    MutabilityException,
    PatchOp,
    PayloadTooLargeException,
    Resource,
    ResourceType,
    SearchRequest,
)
from scim2_server.conditions import Conditions
from scim2_server.service import ScimService

from scim.schemas import provider
from scim.storage import Storage

MOST_OPERATIONS = 100  # Per PATCH; each searches the whole resource, but one may name thousands of members.
LONGEST_FILTER = 10_000


class Service(ScimService):
    """The protocol for one request to `storage`."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(provider())
        self.storage = storage

    def read_creation(self, resource_type: ResourceType, body: bytes, content_type: str | None) -> Resource[Any]:
        return super().read_creation(resource_type, self._complete(resource_type, body, content_type), content_type)

    def read_replacement(self, resource_type: ResourceType, body: bytes, content_type: str | None) -> Resource[Any]:
        return super().read_replacement(resource_type, self._complete(resource_type, body, content_type), content_type)

    def _complete(self, resource_type: ResourceType, body: bytes, content_type: str | None) -> bytes:
        """Add required attributes that the body omits.

        A replacement without `active` does not change whether the person is active.
        """
        sent = self.decode_body(body, content_type)
        if not isinstance(sent, dict):
            raise InvalidSyntaxException(detail="The body must be a JSON object.")
        if resource_type.name != "User":
            return body
        names = {name.lower(): name for name, value in sent.items() if value not in (None, [])}
        if "active" not in names:
            sent["active"] = self.storage.latest_active
        if "emails" not in names:
            user_name = str(sent.get(names.get("username", ""), "")).strip().lower()
            sent["emails"] = [{"value": user_name, "type": "work", "primary": True}]
        return json.dumps(sent).encode()

    def read_search(self, resource_types: list[ResourceType], payload: Any) -> tuple[SearchRequest[Any], Any]:
        """Read a search, refusing long filters, which are slow to parse."""
        for name, value in payload.items() if isinstance(payload, dict) else ():
            if name.casefold() == "filter" and isinstance(value, str) and len(value) > LONGEST_FILTER:
                raise InvalidFilterException(detail=f"A filter has at most {LONGEST_FILTER:,} characters.")
        return super().read_search(resource_types, payload)

    def read_patch(self, resource_type: ResourceType, body: bytes, content_type: str | None) -> PatchOp[Any]:
        """Read a PATCH, refusing too many operations."""
        sent = self.decode_body(body, content_type)
        for name, value in sent.items() if isinstance(sent, dict) else ():
            if name.casefold() == "operations" and isinstance(value, list):
                _must_be_few(value)
        return super().read_patch(resource_type, body, content_type)

    def apply_patch(
        self, current: Resource[Any], patch_op: PatchOp[Any], conditions: Conditions
    ) -> Resource[Any] | None:
        """Apply a PATCH. Removing a person's last address is ignored, because everybody needs one."""
        untouched = current.model_copy(deep=True)
        try:
            return super().apply_patch(current, patch_op, conditions)
        except MutabilityException:
            kept = [one for one in patch_op.operations or [] if not _removes_emails(one)]
            if len(kept) == len(patch_op.operations or []):
                raise
            patch_op.operations = kept
            return super().apply_patch(untouched, patch_op, conditions) if kept else None


def _must_be_few(operations: list[Any]) -> None:
    if len(operations) > MOST_OPERATIONS:
        raise PayloadTooLargeException(detail=f"A PATCH has at most {MOST_OPERATIONS} operations.")
    for operation in operations:
        for name, value in operation.items() if isinstance(operation, dict) else ():
            if name.casefold() == "path" and isinstance(value, str) and len(value) > LONGEST_FILTER:
                raise InvalidPathException(detail=f"A path has at most {LONGEST_FILTER:,} characters.")


def _removes_emails(operation: Any) -> bool:
    return operation.op == "remove" and str(operation.path or "").rpartition(":")[2].lower().startswith("emails")
