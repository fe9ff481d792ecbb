"""Merkle trees (RFC 9162, section 2.1), and the leaf of a log row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import orjson

# The columns in a leaf, by version. A column that is added later needs a new version; existing checkpoints name the
# version they were made with.
COLUMNS: dict[int, tuple[str, ...]] = {
    1: (
        "id",
        "uid",
        "created_at",
        "correlation_id",
        "method",
        "feature_type",
        "feature_name",
        "outcome",
        "deny_reason",
        "http_status",
        "rpc_error_code",
        "host_id",
        "gateway_id",
        "connection_id",
        "user_id",
        "token_id",
        "server_id",
        "identity_id",
        "host_name",
        "gateway_name",
        "server_name",
        "user_email",
        "identity_label",
        "token_name",
        "token_prefix",
        "duration_ms",
        "authorise_ms",
        "upstream_ms",
        "request_bytes",
        "response_bytes",
        "client_ip",
        "user_agent",
        "client_name",
        "client_version",
        "protocol_version",
        "error_text",
        "request_payload",
        "response_payload",
        "payload_truncated",
        "recorded_at",
    )
}
COLUMNS[2] = (*COLUMNS[1], "trace_id")
NEWEST = max(COLUMNS)
# The columns of admin events, by version.
EVENT_COLUMNS: dict[int, tuple[str, ...]] = {
    1: (
        *("id", "uid", "created_at", "actor_id", "actor_email", "via", "ip", "action"),
        *("target_type", "target_id", "target_label", "changes", "correlation_id"),
    )
}
NEWEST_OF_EVENTS = max(EVENT_COLUMNS)
AS_TEXT = {"client_ip", "request_payload", "response_payload", "ip", "changes"}  # As PostgreSQL formats them.
UID, DIGEST = 16, 32
CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z


class Leaf(NamedTuple):
    """A row's uid, and the SHA-256 of its canonical JSON."""

    uid: UUID
    digest: bytes

    @property
    def packed(self) -> bytes:
        return self.uid.bytes + self.digest


def columns_of(
    version: int, as_text: Collection[str] = AS_TEXT, columns: Mapping[int, tuple[str, ...]] = COLUMNS
) -> str:
    """Return a version's columns for a SELECT, those in `as_text` cast to text by PostgreSQL."""
    return ", ".join(f"{name}::text AS {name}" if name in as_text else name for name in columns[version])


def leaf_of(row: Mapping[str, Any]) -> Leaf:
    """Return the leaf of a row read with `columns_of`: sorted keys, times in UTC with microseconds."""
    return Leaf(row["uid"], sha256(orjson.dumps(row, option=CANONICAL)).digest())


def unpacked(leaves: bytes) -> list[Leaf]:
    """Split concatenated packed leaves."""
    size = UID + DIGEST
    parts = (leaves[at : at + size] for at in range(0, len(leaves), size))
    return [Leaf(UUID(bytes=part[:UID]), part[UID:]) for part in parts]


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the Merkle tree hash of these entries: MTH of RFC 9162, section 2.1.1."""
    if not leaves:
        return sha256().digest()
    # Subtrees from left to right, each at least twice as large as the next; two of equal size are merged.
    stack: list[tuple[int, bytes]] = []
    for entry in leaves:
        size, node = 1, sha256(b"\x00" + entry).digest()
        while stack and stack[-1][0] == size:
            node = sha256(b"\x01" + stack.pop()[1] + node).digest()
            size *= 2
        stack.append((size, node))
    node = stack.pop()[1]
    while stack:
        node = sha256(b"\x01" + stack.pop()[1] + node).digest()
    return node
