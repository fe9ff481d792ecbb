"""Read and change data for one SCIM request, in one transaction.

This module imports the optional SCIM package, so it is imported only where /scim/v2/ is served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from django.db import DataError, IntegrityError, transaction
from django.db.models import QuerySet
from scim2_models import (
    ForbiddenException,
    InvalidFilterException,
    InvalidPathException,
    InvalidSyntaxException,
    InvalidValueException,
    MutabilityException,
    NotFoundException,
    PatchOp,
    PayloadTooLargeException,
    PreconditionFailedException,
    Resource,
    ResourceType,
    ResponseParameters,
    ScimFilter,
    SearchRequest,
    TooManyException,
    UniquenessException,
)
from scim2_server.conditions import Conditions
from scim2_server.service import ScimService
from scim2_server.storage import ScimStorage, SearchPage

from accounts.rules import BeyondYours, EmailTaken, LastBreakGlass, LastManager, LastOwner, NameTaken, NotByDirectory
from scim.directory_resources import KINDS
from scim.models import DeactivatedByOthers, ProvisioningKey
from scim.schemas import filter_condition, provider

MOST_LOOKED_THROUGH = 1000  # Most rows for which a filter is evaluated in Python.
REFUSALS = (BeyondYours, LastOwner, LastManager, LastBreakGlass, NotByDirectory, DeactivatedByOthers)


class Storage(ScimStorage):
    """The data for one request. Changes are made in the name of `key`. If `writes` is true, `get` locks the row."""

    def __init__(self, key: ProvisioningKey, *, writes: bool) -> None:
        self.by = key.actor
        self.writes = writes
        self.latest_active = True  # The value of `active` for a replacement that omits `active`.

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Run the block in one transaction, and translate the errors of models and database to SCIM errors."""
        try:
            with transaction.atomic():
                yield
        except REFUSALS as refusal:
            raise ForbiddenException(detail=" ".join(str(refusal).split())) from refusal
        except (EmailTaken, NameTaken) as taken:
            raise UniquenessException(detail=str(taken)) from taken
        except (DataError, UnicodeEncodeError) as error:  # A filter or path has an escaped NUL or lone surrogate.
            raise InvalidValueException(detail="Text must not contain NUL or a lone surrogate.") from error
        except IntegrityError as taken:
            raise UniquenessException(detail="Another resource has this value already.") from taken

    # -- Reading -------------------------------------------------------------------------------------------------

    def get(
        self,
        resource_type: ResourceType,
        resource_id: str,
        *,
        response_parameters: ResponseParameters[Any] | None = None,
    ) -> Resource[Any]:
        kind = KINDS[str(resource_type.name)]
        row = kind.row(resource_id, locked=self.writes)
        with_members = response_parameters is None or _asks_for_members(response_parameters)
        resources: list[Resource[Any]] = kind.resources([row], _model(resource_type), with_members=with_members)
        if not resources:
            raise NotFoundException(detail=f"{resource_id} is gone.")
        resource = resources[0]
        self.latest_active = getattr(resource, "active", None) is not False
        return resource

    def search(
        self, resource_types: list[ResourceType], search_request: SearchRequest[Any], *, position: Any = None
    ) -> SearchPage:
        start, left = search_request.start_index_0 or 0, search_request.count or 0
        total, found = 0, []
        for resource_type in resource_types:
            kind, rows = KINDS[str(resource_type.name)], self._matching(resource_type, search_request)
            number = rows.count()
            if start < total + number and left > 0:
                begin = max(0, start - total)
                page, with_members = list(rows[begin : begin + left]), _asks_for_members(search_request)
                found += kind.resources(page, _model(resource_type), with_members=with_members)
                left -= len(page)
            total += number
        return SearchPage(total, found)

    def _matching(self, resource_type: ResourceType, search_request: SearchRequest[Any]) -> QuerySet[Any]:
        """Return the rows that match the filter. Evaluate the filter in Python if the database cannot."""
        kind, model = KINDS[str(resource_type.name)], _model(resource_type)
        rows: QuerySet[Any] = kind.rows()
        if search_request.filter is None:
            return rows
        condition, is_exact = filter_condition(search_request.filter.ast, str(resource_type.name))
        rows = rows.filter(condition)
        if is_exact:
            return rows
        candidates = list(rows[: MOST_LOOKED_THROUGH + 1])
        if len(candidates) > MOST_LOOKED_THROUGH:
            raise TooManyException(
                detail="Narrow the filter: use eq with id or externalId. For a User, you can also use eq with "
                "userName, emails or active. For a Group, you can also use eq with displayName or members."
            )
        bound = cast(Any, ScimFilter)[model](str(search_request.filter))
        matching = [one.id for one in kind.resources(candidates, model, with_members=True) if bound.match(one)]
        return rows.filter(pk__in=matching)

    # -- Changing ------------------------------------------------------------------------------------------------

    def create(self, resource_type: ResourceType, resource: Resource[Any]) -> Resource[Any]:
        pk = KINDS[str(resource_type.name)].create(self.by, resource.model_dump())
        return self.get(resource_type, str(pk))

    def update(
        self, resource_type: ResourceType, resource: Resource[Any], *, expected_version: str | None = None
    ) -> Resource[Any]:
        kind = KINDS[str(resource_type.name)]
        self._must_be(resource_type, str(resource.id), expected_version)
        kind.update(self.by, kind.row(str(resource.id), locked=True), resource.model_dump())
        return self.get(resource_type, str(resource.id))

    def delete(self, resource_type: ResourceType, resource_id: str, *, expected_version: str | None = None) -> None:
        kind = KINDS[str(resource_type.name)]
        self._must_be(resource_type, resource_id, expected_version)
        kind.delete(self.by, kind.row(resource_id, locked=True))

    def _must_be(self, resource_type: ResourceType, resource_id: str, version: str | None) -> None:
        kind = KINDS[str(resource_type.name)]
        row = kind.row(resource_id, locked=True)
        stored = kind.resources([row], _model(resource_type), with_members=False)[0].meta
        if version is not None and stored is not None and stored.version != version:
            raise PreconditionFailedException


def _model(resource_type: ResourceType) -> Any:
    return provider().model_for(resource_type)


def _asks_for_members(parameters: ResponseParameters[Any]) -> bool:
    def says(paths: Any) -> bool:
        return any(str(path).rpartition(":")[2].lower().startswith("members") for path in paths or ())

    return says(parameters.attributes) if parameters.attributes else not says(parameters.excluded_attributes)


# The SCIM protocol (RFC 7644), with defaults for required attributes that directories omit.

# Limit of operations in a PATCH, because each operation searches the whole resource. The members are not limited by
# this: one operation may add thousands.
MOST_OPERATIONS = 100
LONGEST_FILTER = 10_000


class Service(ScimService):
    """The SCIM protocol for one request; reads and changes `storage`."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(provider())
        self.storage = storage

    def read_creation(self, resource_type: ResourceType, body: bytes, content_type: str | None) -> Resource[Any]:
        return super().read_creation(resource_type, self._complete(resource_type, body, content_type), content_type)

    def read_replacement(self, resource_type: ResourceType, body: bytes, content_type: str | None) -> Resource[Any]:
        return super().read_replacement(resource_type, self._complete(resource_type, body, content_type), content_type)

    def _complete(self, resource_type: ResourceType, body: bytes, content_type: str | None) -> bytes:
        """Return the body. If the body of a User omits required attributes, add them."""
        sent = self.decode_body(body, content_type)
        if not isinstance(sent, dict):
            raise InvalidSyntaxException(detail="The body must be a JSON object.")
        if resource_type.name != "User":
            return body
        names = {name.lower(): name for name, value in sent.items() if value not in (None, [])}
        if "active" not in names:
            sent["active"] = self.storage.latest_active  # In a replacement, this is the person's present value.
        if "emails" not in names:
            user_name = str(sent.get(names.get("username", ""), "")).strip().lower()
            sent["emails"] = [{"value": user_name, "type": "work", "primary": True}]
        return json.dumps(sent).encode()

    def read_search(self, resource_types: list[ResourceType], payload: Any) -> tuple[SearchRequest[Any], Any]:
        """Read a search; refuse a filter longer than LONGEST_FILTER, which would be slow to parse."""
        for name, value in payload.items() if isinstance(payload, dict) else ():
            if name.casefold() == "filter" and isinstance(value, str) and len(value) > LONGEST_FILTER:
                raise InvalidFilterException(detail=f"A filter has at most {LONGEST_FILTER:,} characters.")
        return super().read_search(resource_types, payload)

    def read_patch(self, resource_type: ResourceType, body: bytes, content_type: str | None) -> PatchOp[Any]:
        """Read a PATCH. Refuse a PATCH that has more than MOST_OPERATIONS operations, or a path that is too long."""
        sent = self.decode_body(body, content_type)
        for name, value in sent.items() if isinstance(sent, dict) else ():
            if name.casefold() == "operations" and isinstance(value, list):
                _must_be_few(value)
        return super().read_patch(resource_type, body, content_type)

    def apply_patch(
        self, current: Resource[Any], patch_op: PatchOp[Any], conditions: Conditions
    ) -> Resource[Any] | None:
        """Apply a PATCH, and return the new state of the resource; None if nothing changes."""
        untouched = current.model_copy(deep=True)
        try:
            return super().apply_patch(current, patch_op, conditions)
        except MutabilityException:
            # Ignore the removal of a person's last e-mail address, because one address is required.
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
