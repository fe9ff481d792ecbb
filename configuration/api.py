"""/api/config: export the configuration as a file, and plan and apply configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities.catalogue import SEES_CONFIGURATION
from configuration import document
from configuration.apply import AnotherPlan, Lacking, StillDiffers, apply_and_list
from configuration.document import ConfigDocument, ConfigurationError
from configuration.export import export_recorded
from configuration.files import LONGEST_SECRET
from configuration.kinds import CHANGING
from configuration.plan import plan
from configuration.words import as_json
from ui.operations import File, RequestBody, operation
from ui.rest import Problem, Resource

YAML = "application/yaml"
MOST_FILES, LONGEST_NAME = 200, 200


class ConfigFile(RequestBody):
    """A configuration file."""

    name = serializers.CharField(max_length=LONGEST_NAME, help_text="Name of the file, for messages and events.")
    content = serializers.CharField(
        allow_blank=True,
        trim_whitespace=False,
        max_length=document.MOST_CHARACTERS,
        help_text="Text of the file (YAML).",
    )


class ConfigFiles(RequestBody):
    """Configuration files. They are read as if they were one file."""

    files = serializers.ListField(child=ConfigFile(), allow_empty=False, max_length=MOST_FILES, help_text="The files.")
    secrets = serializers.DictField(
        child=serializers.CharField(max_length=LONGEST_SECRET, trim_whitespace=False),
        default=dict,
        write_only=True,
        help_text="The secrets that the files refer to. Each key is a reference in the files, such as "
        "`env:SIEM_TOKEN`, and its value is the secret. The gateway does not look up secrets itself.",
    )
    prune = serializers.BooleanField(
        default=False,
        help_text="If true, disable every object that has the same `source` as the files "
        "but is missing from the lists in the files.",
    )

    def validate_files(self, files: list[dict[str, str]]) -> list[dict[str, str]]:
        if len({one["name"] for one in files}) < len(files):
            raise serializers.ValidationError("Two files have the same name. Give each file its own name.")
        return files


class ConfigApply(ConfigFiles):
    """Configuration files to apply."""

    digest = serializers.CharField(
        required=False,
        max_length=64,
        help_text="Digest of the plan that you reviewed. If the plan has changed since then, nothing is applied. "
        "Without a digest, any plan is applied.",
    )
    commit = serializers.CharField(
        required=False,
        max_length=100,
        help_text="Version of the files, such as a Git commit. Admin events name it.",
    )


class FieldChangeSerializer(serializers.Serializer[Any]):
    """A changed field."""

    name = serializers.CharField(help_text="Name of the field.")
    now = serializers.JSONField(allow_null=True, help_text="Value before; null for a new object.")
    then = serializers.JSONField(allow_null=True, help_text="Value after.")


class ObjectChangeSerializer(serializers.Serializer[Any]):
    """A change of one object."""

    act = serializers.CharField(help_text="`add`, `change`, `remove` or `disable`.")
    kind = serializers.CharField(help_text="Kind of object, such as `gateways.servers`.")
    object = serializers.CharField(help_text="The object in words.")
    key = serializers.ListField(
        child=serializers.CharField(), help_text="Name or slug of the parent, if any, then name or slug of the object."
    )
    fields_changed = FieldChangeSerializer(many=True, help_text="Changed fields.")
    cuts = serializers.CharField(
        help_text="Text about the effects of the change, such as access that ends. If there was no time left to count "
        "the effects, the text says so. Empty if no effect is known. Always empty in the answer of `apply`."
    )


class MissingSerializer(serializers.Serializer[Any]):
    """A capability that a change requires and the caller lacks."""

    object = serializers.CharField(help_text="The object in words.")
    capability = serializers.CharField(help_text="Slug of the capability.")


class PlanSerializer(serializers.Serializer[Any]):
    """The changes that configuration files make to the workspace."""

    files = serializers.ListField(child=serializers.CharField(), help_text="Names of the files.")
    digest = serializers.CharField(help_text="Digest of the changes, for `apply`.")
    changes = ObjectChangeSerializer(many=True, help_text="All changes, in order.")
    not_in_file = serializers.ListField(
        child=serializers.CharField(),
        help_text="Objects of the workspace that are missing from lists in the files. `prune` disables those "
        "that are enabled and have the same `source` as the files.",
    )
    claimed = serializers.ListField(
        child=serializers.CharField(),
        help_text="Objects that get the `source` of the files, but do not change otherwise.",
    )
    missing_capabilities = MissingSerializer(many=True, help_text="Capabilities that you lack; empty if none.")
    summary = serializers.CharField(
        help_text="Numbers of added, changed, removed and disabled objects, such as `2 added, 1 changed`; or "
        "`no changes`."
    )
    unanswered = serializers.CharField(
        help_text="A text about servers that were added to a gateway, but did not list their tools. Empty if all "
        "listed them, and always empty in the answer of `plan`."
    )
    text = serializers.CharField(help_text="The plan in words.")


class ConfigurationResource(Resource):
    """The configuration of the workspace as files (YAML)."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        ConfigurationError: Problem(HTTPStatus.BAD_REQUEST, "invalid", "files"),
        AnotherPlan: Problem(HTTPStatus.CONFLICT, "another_plan"),
        StillDiffers: Problem(HTTPStatus.CONFLICT, "still_differs"),
        Lacking: Problem(HTTPStatus.FORBIDDEN, "capabilities_required"),
    }
    serializer_class = PlanSerializer

    @operation(needs=SEES_CONFIGURATION, answer=File((YAML,)))
    def export(self, request: Request) -> HttpResponse:
        """Export the configuration.

        The file has only what you may see, and no people, tokens or secrets.
        """
        return HttpResponse(export_recorded(self.me), content_type=f"{YAML}; charset=utf-8")

    @operation(needs=SEES_CONFIGURATION, body=ConfigFiles)
    def plan(self, request: Request) -> Response:
        """Plan configuration files.

        Compares them with the workspace and changes nothing.
        """
        body = self.body()
        return Response(as_json(plan(self._read(body), self.me, secrets=body["secrets"], prune=body["prune"])))

    @operation(needs=CHANGING, body=ConfigApply, reauth=True, conflicts=True)
    def apply(self, request: Request) -> Response:
        """Apply configuration files.

        Makes all changes of the plan, or none. Then requests the tool list of each server that was added to a gateway.
        """
        body = self.body()
        terms = {
            "secrets": body["secrets"],
            "prune": body["prune"],
            "digest": body.get("digest"),
            "commit": body.get("commit", ""),
        }
        return Response(as_json(apply_and_list(self._read(body), by=self.me, **terms)))

    def _read(self, body: Mapping[str, Any]) -> ConfigDocument:
        return document.read({one["name"]: one["content"] for one in body["files"]})
