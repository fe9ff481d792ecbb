"""The OpenAPI 3.1 description of the API, generated from the declarations that the views enforce."""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from typing import Any

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import build_array_type, build_object_type, get_doc
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import NOBODY
from capabilities.rest import Own, Rule, capabilities_in
from ui.operations import FORM, HEADER, File, InProgress, KeyReused, Operation, operation
from ui.rest import NO_CREDENTIAL, Resource, UtcDateTimeField
from wire.versions import VERSION

UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}


def _link(which: str) -> dict[str, Any]:
    return {"type": ["string", "null"], "format": "uri", "description": f"Address of the {which} page; null if none."}


class ProblemSerializer(serializers.Serializer[Any]):
    """A refusal. The reason is given in words, and as a code. The codes do not change."""

    detail = serializers.CharField(help_text="What went wrong, in words; the wording may change.")
    code = serializers.CharField(help_text="What went wrong, as a code for programs; codes do not change.")


class InvalidSerializer(ProblemSerializer):
    """A refusal of invalid input, with the errors by field or parameter."""

    # DRF serializers have an attribute `errors`, so a field of this name cannot be declared in the class.
    def get_fields(self) -> dict[str, Any]:
        errors = serializers.DictField(required=False, help_text="What is wrong, by field or parameter.")
        return {**super().get_fields(), "errors": errors}


class RefusalSerializer(ProblemSerializer):
    """A refusal for lack of permission, with the missing capability if there is one."""

    capability = serializers.CharField(required=False, help_text="Slug of the missing capability.")


class ChangeSerializer(serializers.Serializer[Any]):
    """A changed field: its current value, and the author and time of the change, if known."""

    field = serializers.CharField(help_text="Name of the field.")
    value = serializers.JSONField(allow_null=True, help_text="Current value of the field.")
    by = serializers.CharField(allow_null=True, help_text="E-mail address of the person who changed the field.")
    at = UtcDateTimeField(allow_null=True, help_text="When it was changed.")


class ChangedSerializer(ProblemSerializer):
    """A refusal because of changes made after the version in `If-Match`."""

    changed = ChangeSerializer(
        many=True, help_text="Changes since the version in `If-Match`; empty if these changes are unknown."
    )


REFUSALS: dict[int, tuple[type[ProblemSerializer], str]] = {
    400: (InvalidSerializer, "The input is invalid; see `errors`."),
    401: (ProblemSerializer, "The credential is missing, unknown, expired or revoked."),
    403: (RefusalSerializer, "Refused, for example because a capability is missing; see `code`."),
    404: (ProblemSerializer, "The object does not exist, or you may not see it."),
    406: (ProblemSerializer, "Only JSON is available."),
    409: (ProblemSerializer, "A conflict, for example with the object's state or a name in use; see `code`."),
    412: (ChangedSerializer, "The object was changed after the version in `If-Match`; nothing was written."),
    413: (ProblemSerializer, "The body is larger than 1 MiB."),
    415: (ProblemSerializer, "The body is not JSON."),
    422: (ProblemSerializer, "The `Idempotency-Key` was used for another request."),
    429: (ProblemSerializer, "Too many requests; try again after `Retry-After` seconds."),
}


# Maps generated operation ids to the ids to use, for views that are not named after the object.
NAMES = {
    "confirm_confirm": "me_confirm",
    "endings_gateway": "gateway_archive",
    "endings_host": "host_archive",
    "endings_user": "user_cut_off",
    "identity_places_retrieve": "identity_gateways_retrieve",
    "identity_places_update": "identity_gateways_update",
    "regenerate_regenerate": "connection_regenerate",
    "server_archive_archive": "server_archive",
    **{f"stops_{kind}": f"{kind}_stop" for kind in ("connection", "host", "server", "token", "user")},
}
PATH = {
    "name": "Name of the server in the registry, such as `com.example.gateway/docs`.",
    "version": "Version of the server, or `latest`.",
    "alias": "Alias of the server at this gateway, or the id of its assignment.",
    "assignment": "Id of the server's assignment to the gateway.",
    "host": "Id of the app or agent.",
    "id": "Id of the object.",
    "slug": "Slug of the object.",
}
# Headers of requests.
HEADERS: dict[str, dict[str, Any]] = {
    "If-Match": {
        "description": "The `ETag` of the object as you read it. If the object was changed since, the answer is 412, "
        "and nothing is written."
    },
    "If-None-Match": {
        "description": "The `ETag` of an earlier answer. If this `ETag` is still current, the answer is 304."
    },
    HEADER: {
        "type": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": f"^{FORM.pattern}$"},
        "description": "A string that you choose, such as a UUID: a new one for each object to create. If you repeat "
        "the request with the same string within an hour, no second object is created. You get the first answer "
        "again, with the header `Idempotency-Replayed: true`.",
    },
}


# Examples of refusals: code, words and other members.
ERRORS: dict[int, list[tuple[str, str, dict[str, Any]]]] = {
    400: [("invalid", "Invalid input.", {"errors": {"name": ["This field is required."]}})],
    401: [("not_authenticated", NO_CREDENTIAL, {})],
    403: [("key_not_accepted", "API keys are not accepted here. Sign in.", {})],
    404: [("not_found", "Not found.", {})],
    406: [("not_acceptable", "Could not satisfy the request Accept header.", {})],
    412: [
        (
            "changed_meanwhile",
            "Somebody changed this after you opened it.",
            {
                "changed": [
                    {"field": "name", "value": "CRM 2", "by": "ana@example.com", "at": "2026-06-18T12:00:00.000Z"}
                ]
            },
        )
    ],
    413: [("too_large", "The body is larger than 1 MiB.", {})],
    415: [("unsupported_media_type", 'Unsupported media type "text/plain" in request.', {})],
    422: [(KeyReused.default_code, KeyReused.default_detail, {})],
    429: [("throttled", "Request was throttled. Expected available in 60 seconds.", {})],
}


class OperationSchema(AutoSchema):
    """Description of one operation, generated from the declaration of its view."""

    view: Resource  # type: ignore[override]  # No other view is described.

    @property
    def action(self) -> str:
        return self.view.action or ""

    @property
    def operation(self) -> Operation:
        return self.view.operation

    @property
    def rule(self) -> Rule:
        return self.operation.needs

    def get_operation_id(self) -> str:
        """Return a name such as `token_rotate`."""
        name = re.sub(r"(Resource|_)$", "", type(self.view).__name__)
        name = f"{re.sub(r'(?<!^)(?=[A-Z])', '_', name).lower()}_{self.action}"
        return NAMES.get(name, name)

    def get_tags(self) -> list[str]:
        tokens = self._tokenize_path()
        names = ("connections", "servers", "features", "tools")
        nested = [name for name in names if tokens[0] == "gateways" and name in tokens]
        return [" ".join(["gateways", *nested])] if nested else tokens[:1]

    def get_summary(self) -> str:
        """Return the first line of the method's docstring."""
        return get_doc(getattr(self.view, self.action)).partition("\n")[0].rstrip(".")

    def get_description(self) -> str:  # type: ignore[override]  # As drf-spectacular has it.
        """Return the method's docstring after its first paragraph. Append a sentence on the required capabilities."""
        # If nothing is left, the docstring of the view's class replaces it.
        doc = get_doc(getattr(self.view, self.action)).partition("\n\n")[2] or get_doc(type(self.view))
        needed = sorted(capability.slug for capability in capabilities_in(self.rule))
        held = self.rule.others if isinstance(self.rule, Own) else self.rule
        join = " and " if isinstance(held, frozenset) else " or "
        takes = (
            f"Requires {join.join(f'`{slug}`' for slug in needed)}" if needed else "Open to everybody who is signed in"
        )
        own = (
            " for objects that are not your own; an API key needs it for all objects"
            if isinstance(self.rule, Own)
            else ""
        )
        if isinstance(self.rule, Own) and self.rule.others == NOBODY:
            takes, own = f"Only for the owner of the object. {takes} in the owner's API key", ""
        lines = " ".join(line.strip() for line in doc.strip().splitlines())
        return f"{lines}\n\n{takes}{own}."

    def get_override_parameters(self) -> list[Any]:
        query = self.operation.query
        return [*([query] if query().fields else []), *self._ordering(), *self._headers(), *self._etag()]

    def _ordering(self) -> list[OpenApiParameter]:
        if not self.operation.has_page_numbers:
            return []
        names = sorted(self.operation.orderings)
        if not names:
            return [OpenApiParameter("ordering", exclude=True)]
        note = str(self.operation.query().fields["ordering"].help_text)
        return [OpenApiParameter("ordering", description=note, enum=[*names, *(f"-{name}" for name in names)])]

    def _headers(self) -> list[OpenApiParameter]:
        """Return the request headers that the operation reads, except the headers for authentication."""
        taken = {
            "If-Match": self.operation.if_match,
            "If-None-Match": self.action == "retrieve",
            HEADER: self.operation.makes,
        }
        return [OpenApiParameter(name, location="header", **HEADERS[name]) for name, takes in taken.items() if takes]

    def _etag(self) -> list[OpenApiParameter]:
        """Return the ETag header of responses that contain the object or have status 304 or 412."""
        looks = self.action == "retrieve"
        is_thing = looks or (self.view.versioned and self.operation.answer is None and self.action != "list")
        tagged = {200: is_thing, 201: is_thing, 304: looks, 412: self.operation.if_match}
        statuses = [status for status, has in tagged.items() if has]
        note = "Version of the object's editable values, followed by a hash of the answer."
        tag = OpenApiParameter("ETag", location="header", description=note, required=True, response=statuses)
        return [tag] if statuses else []

    def _is_list_view(self, serializer: Any = None) -> bool:
        return False  # `_page` describes lists instead.

    def _get_pagination_parameters(self) -> list[Any]:
        return []  # The query class declares these parameters.

    def get_request_serializer(self) -> Any:
        return self.operation.body

    def get_response_serializers(self) -> Any:
        return self._answered() | {
            (status, "application/json"): OpenApiResponse(*REFUSALS[status], examples=self._errors(status))
            for status in self._refused()
        }

    def _errors(self, status: int) -> list[OpenApiExample]:
        """Return one example for each error code that is possible with this status."""
        errors = {code: {"detail": detail, "code": code, **more} for code, detail, more in ERRORS.get(status, ())}
        for kind, problem in self.view.problems.items():
            if problem.status == status and problem.code != "invalid":
                errors[problem.code] = {"detail": kind.__doc__, "code": problem.code}
        if status == HTTPStatus.FORBIDDEN and (needed := sorted(one.slug for one in capabilities_in(self.rule))):
            detail = f"Capability '{needed[0]}' is required."
            code = "capability_required"
            errors = {code: {"detail": detail, "code": code, "capability": needed[0]}, **errors}
        if status == HTTPStatus.CONFLICT and self.operation.makes:
            errors[InProgress.default_code] = {"detail": InProgress.default_detail, "code": InProgress.default_code}
        if status == HTTPStatus.CONFLICT and self.operation.conflicts:
            errors["already_exists"] = {"detail": "This name is in use already.", "code": "already_exists"}
        return [OpenApiExample(code, value=value) for code, value in errors.items()]

    def _answered(self) -> dict[Any, Any]:
        """Return the successful responses."""
        match self.operation.answer:
            case HTTPStatus.NO_CONTENT:
                return {HTTPStatus.NO_CONTENT.value: OpenApiResponse(description="Done.")}
            case File(media_types):
                kinds = {kind: OpenApiTypes.OBJECT if "yaml" in kind else OpenApiTypes.BINARY for kind in media_types}
                return {(200, kind): OpenApiResponse(content, "A file.") for kind, content in kinds.items()}
            case declared:
                serializer = declared or self.view.get_serializer_class()
        status = HTTPStatus.CREATED if self.action == "create" else HTTPStatus.OK
        answers: dict[Any, Any] = {
            (status.value, "application/json"): self._page(serializer) if self.action == "list" else serializer
        }
        if self.action == "retrieve":
            answers[HTTPStatus.NOT_MODIFIED.value] = OpenApiResponse(description="`If-None-Match` is still current.")
        return answers

    def _page(self, row: Any) -> dict[str, Any]:
        rows = build_array_type(self.resolve_serializer(row, "response").ref)
        total = {"type": "integer", "minimum": 0, "description": "Number of rows on all pages."}
        count = {"count": total} if self.operation.has_page_numbers else {}
        rows = {**rows, "description": "The rows of this page."}
        properties = {**count, "next": _link("next"), "previous": _link("previous"), "results": rows}
        return build_object_type(properties, required=list(properties))

    def _refused(self) -> list[int]:
        """Return the statuses of possible refusals."""
        has_body = self.operation.body is not None
        conflicts = self.operation.conflicts or any(problem.status == 409 for problem in self.view.problems.values())
        possible = {
            409: self.method in UNSAFE and (conflicts or self.operation.makes),
            404: "{" in self.path or self.operation.has_page_numbers,
            412: self.operation.if_match,
            413: has_body,
            415: has_body,
            422: self.operation.makes,
            429: self._is_limited,
        }
        return sorted({400, 401, 403, 406} | {status for status, can in possible.items() if can})

    @property
    def _is_limited(self) -> bool:
        limits = any(problem.status == 429 for problem in self.view.problems.values())
        return bool(self.view.throttle_classes) or (self.method == "POST" and limits)

    def get_auth(self) -> list[Any]:
        super().get_auth()  # Registers the schemes.
        person: dict[str, list[str]] = {"session": [], "csrf": []} if self.method in UNSAFE else {"session": []}
        key: list[Any] = [{"apiKey": []}] if self.operation.api_keys else []
        token: list[Any] = [{"accessToken": []}] if self.operation.access_tokens else []
        return [*key, person, *token]

    def _map_serializer_field(self, field: Any, direction: Any, bypass_extensions: bool = False) -> Any:
        field.help_text = field.help_text or self._help_text(field, direction)
        schema = super()._map_serializer_field(field, direction, bypass_extensions)  # type: ignore[no-untyped-call]
        if direction == "response" and isinstance(schema, dict):
            schema = {name: value for name, value in schema.items() if name != "minLength"}  # Only requests need this.
            if {} in schema.get("oneOf", ()):
                del schema["oneOf"]  # One choice accepts any value. Null would match two, but `oneOf` allows one.
        return schema

    def _help_text(self, field: Any, direction: Any) -> str | None:
        """Return a help text for a field that declares none, or None if no text can be derived."""
        declared: Any = self.operation.answer
        answer = declared if isinstance(declared, type) else self.view.serializer_class
        # A request field has the help text of the response field of the same name.
        if direction == "request" and answer and (same := answer().fields.get(field.field_name)):
            return same.help_text or self._help_text(same, "response")
        if isinstance(field, serializers.BaseSerializer):
            return get_doc(type(getattr(field, "child", field)))
        return None

    def _resolve_path_parameters(self, variables: Any) -> Any:
        parameters = super()._resolve_path_parameters(variables)  # type: ignore[no-untyped-call]
        return [parameter | {"description": PATH[parameter["name"]]} for parameter in parameters]


class SessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """Authentication by a person's session."""

    target_class = "ui.rest_requests.SessionCookie"
    name = ["session", "csrf"]  # noqa: RUF012  (so named by the extension)

    def get_security_definition(self, auto_schema: AutoSchema) -> Any:
        return [
            {"type": "apiKey", "in": "cookie", "name": settings.SESSION_COOKIE_NAME},
            {
                "type": "apiKey",
                "in": "header",
                "name": "X-CSRFToken",
                "description": "Must be sent with the session cookie.",
            },
        ]


class Bearer(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """Authentication by an API key or an API access token. An access token only permits its own rotation."""

    target_class = "tokens.authentication.BearerAuthentication"
    name = ["apiKey", "accessToken"]  # noqa: RUF012

    def get_security_definition(self, auto_schema: AutoSchema) -> Any:
        return [
            {"type": "http", "scheme": "bearer", "description": "A person's API key, `gwp_...`."},
            {
                "type": "http",
                "scheme": "bearer",
                "description": "An API access token, `gwa_...`. This API accepts it only to rotate the token itself.",
            },
        ]


def closed(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Forbid unknown members in request bodies. Responses stay open, because later releases may add members."""
    for name, schema in result["components"]["schemas"].items():
        schema.setdefault("description", "One of these objects.")  # Only schemas for a choice of objects have none.
        if "properties" in schema and name.endswith("Request"):
            schema.setdefault("additionalProperties", False)
    return result


@cache
def description() -> dict[str, Any]:
    """Return the description of the API, as OpenAPI 3.1."""
    generator: Any = SchemaGenerator
    generated: dict[str, Any] = generator(urlconf="gatewayadmin.urls").get_schema(request=None, public=True)
    generated["info"]["x-release"] = {"version": VERSION, "commit": settings.COMMIT}
    return generated


class DescriptionSerializer(serializers.Serializer[Any]):
    """An OpenAPI document."""


class Schema(Resource):
    """This description of the API: OpenAPI 3.1, as JSON."""

    serializer_class = DescriptionSerializer

    @operation(needs=None)
    def retrieve(self, request: Request) -> Response:
        """Get this description."""
        return self.tagged(description())
