"""Reads and changes for one SCIM request, in one transaction.

Imports the optional package, so only imported where /scim/v2/ is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from django.db import DataError, IntegrityError, transaction
from django.db.models import QuerySet
from scim2_models import (
    ForbiddenException,
    InvalidValueException,
    NotFoundException,
    PreconditionFailedException,
    Resource,
    ResourceType,
    ResponseParameters,
    ScimFilter,
    SearchRequest,
    TooManyException,
    UniquenessException,
)
from scim2_server.storage import ScimStorage, SearchPage

from accounts.rules import BeyondYours, EmailTaken, LastBreakGlass, LastManager, LastOwner, NameTaken, NotByDirectory
from scim.directory_resources import KINDS
from scim.filters import filter_condition
from scim.models import DeactivatedByOthers, ProvisioningKey
from scim.schemas import provider

MOST_LOOKED_THROUGH = 1000  # Rows for which a filter is evaluated in Python.
REFUSALS = (BeyondYours, LastOwner, LastManager, LastBreakGlass, NotByDirectory, DeactivatedByOthers)


class Storage(ScimStorage):
    """Storage for one request, acting with `key`. With `writes`, rows are locked when they are read."""

    def __init__(self, key: ProvisioningKey, *, writes: bool) -> None:
        self.by = key.actor
        self.writes = writes
        self.latest_active = True  # The value for a replacement without `active`.

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Run in one transaction, and translate refusals to SCIM errors."""
        try:
            with transaction.atomic():
                yield
        except REFUSALS as refusal:
            raise ForbiddenException(detail=" ".join(str(refusal).split())) from refusal
        except (EmailTaken, NameTaken) as taken:
            raise UniquenessException(detail=str(taken)) from taken
        except (DataError, UnicodeEncodeError) as error:  # NUL or a lone surrogate, escaped in a filter or path.
            raise InvalidValueException(detail="Text holds no NUL character and no half of a pair.") from error
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
        start = search_request.start_index_0 or 0
        left = search_request.count if search_request.count is not None else 0
        total, found = 0, []
        for resource_type in resource_types:
            matching = self._matching(resource_type, search_request)
            number = len(matching)
            if start < total + number and left > 0:
                begin = max(0, start - total)
                page = matching[begin : begin + left]
                found += page
                left -= len(page)
            total += number
        return SearchPage(total, found)

    def _matching(self, resource_type: ResourceType, search_request: SearchRequest[Any]) -> _Matching:
        kind, model = KINDS[str(resource_type.name)], _model(resource_type)
        with_members = _asks_for_members(search_request)

        def build(rows: list[Any]) -> list[Resource[Any]]:
            built: list[Resource[Any]] = kind.resources(rows, model, with_members=with_members)
            return built

        rows = kind.rows()
        if search_request.filter is None:
            return _Matching(rows, build)
        condition, is_exact = filter_condition(search_request.filter.ast, str(resource_type.name))
        rows = rows.filter(condition)
        if is_exact:
            return _Matching(rows, build)
        candidates = list(rows[: MOST_LOOKED_THROUGH + 1])
        if len(candidates) > MOST_LOOKED_THROUGH:
            raise TooManyException(
                detail="Narrow the filter: compare userName, externalId, id, emails or active with eq."
            )
        bound = cast(Any, ScimFilter)[model](str(search_request.filter))
        return _Matching([one for one in kind.resources(candidates, model, with_members=True) if bound.match(one)])

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


class _Matching:
    """Search results: resources, or rows of which only one page is converted to resources."""

    def __init__(self, found: Any, build: Callable[[list[Any]], list[Resource[Any]]] = list) -> None:
        self._found, self._build = found, build

    def __len__(self) -> int:
        return self._found.count() if isinstance(self._found, QuerySet) else len(self._found)

    def __getitem__(self, part: slice) -> list[Resource[Any]]:
        return self._build(list(self._found[part]))


def _model(resource_type: ResourceType) -> Any:
    return provider().model_for(resource_type)


def _asks_for_members(parameters: ResponseParameters[Any]) -> bool:
    def says(paths: Any) -> bool:
        return any(str(path).rpartition(":")[2].lower().startswith("members") for path in paths or ())

    return says(parameters.attributes) if parameters.attributes else not says(parameters.excluded_attributes)
