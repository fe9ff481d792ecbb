"""Validation of an app's metadata, from a registration or a client metadata document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from oauth import redirect_uris

METHODS = ("none", "client_secret_post", "client_secret_basic")


class BadClientMetadata(Exception):
    """The app's metadata are not acceptable."""

    def __init__(self, sentence: str, code: str = "invalid_client_metadata") -> None:
        super().__init__(sentence)
        self.code = code


def parse_client_metadata(body: bytes, *, biggest: int) -> dict[str, Any]:
    """Parse the JSON object in `body`. Raises BadClientMetadata."""
    if len(body) > biggest:
        raise BadClientMetadata("The registration is too large.")
    try:
        metadata = json.loads(body)
    except (ValueError, RecursionError):
        raise BadClientMetadata("The registration must be JSON.") from None
    if not isinstance(metadata, dict):
        raise BadClientMetadata("The registration must be a JSON object.")
    return metadata


def validated_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the metadata, and return the part the toolkit uses. Only code and refresh grants are accepted.

    Raises BadClientMetadata.
    """
    uris = metadata.get("redirect_uris")
    if (
        not isinstance(uris, list)
        or not 0 < len(uris) <= redirect_uris.MOST
        or not all(isinstance(u, str) for u in uris)
    ):
        raise BadClientMetadata(f"Give 1 to {redirect_uris.MOST} redirect_uris.", "invalid_redirect_uri")
    try:
        for uri in uris:
            redirect_uris.check_redirect_uri(uri)
    except redirect_uris.BadRedirect as bad:
        raise BadClientMetadata(str(bad), "invalid_redirect_uri") from None
    grants = metadata.get("grant_types", ["authorization_code"])
    if not isinstance(grants, list) or "authorization_code" not in grants:
        raise BadClientMetadata("The grant type authorization_code is needed.")
    method = metadata.get("token_endpoint_auth_method", "client_secret_basic")
    if method not in METHODS:
        raise BadClientMetadata(f"token_endpoint_auth_method must be one of {', '.join(METHODS)}.")
    return {
        "redirect_uris": uris,
        "client_name": words(metadata, "client_name", 120),
        "grant_types": ["authorization_code"],
        "token_endpoint_auth_method": method,
    }


def words(metadata: Mapping[str, Any], key: str, most: int) -> str:
    """Return a self-asserted text on one line, without control characters, truncated."""
    value = metadata.get(key)
    if not isinstance(value, str):
        return ""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in value)).strip()[:most]


def details(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields stored with a registration in addition to its name."""
    return {
        "client_uri": words(metadata, "client_uri", 500),
        "software_id": words(metadata, "software_id", 120),
        "software_version": words(metadata, "software_version", 60),
    }
