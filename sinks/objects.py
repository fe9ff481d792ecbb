"""Object stores: an S3 bucket or a folder. Existing objects are never overwritten.

A small S3 client over the same guarded sockets as webhooks, because a library would resolve names itself and bypass the
guard. Requests are signed with AWS Signature Version 4; `If-None-Match: *` makes a PUT create an object or fail (RFC
9110 section 13.1.2).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import os
import re
import string
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import parse_qs, quote, urlsplit
from uuid import uuid4

import httpx

from wire.background import Deadline
from wire.guard import Guard, GuardedTransport

# Signatures and secrets of webhooks (Standard Webhooks).

LEAST_SECRET = 24  # Random bytes, as Standard Webhooks requires.
ALPHABETS = (
    string.digits,
    string.digits + "abcdef",
    string.digits + "ABCDEF",
    string.ascii_lowercase,
    string.ascii_letters,
    string.ascii_letters + string.digits,
    string.ascii_letters + string.digits + "+/=_-",
)
LEAST_DIFFERENT = 10  # Different characters of a random secret.
PREFIX = "whsec_"  # Prefix of base64 secrets (Standard Webhooks).


def signing_key(secret: str) -> bytes:
    """Return the key: the decoded bytes of a `whsec_` secret, or the characters of any other."""
    if secret.startswith(PREFIX):
        with suppress(ValueError):
            return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    return secret.encode()


def weakness(secret: str) -> str:
    """Return why a secret cannot contain LEAST_SECRET random bytes; empty if it can."""
    key = signing_key(secret)
    if secret.startswith(PREFIX) and key != secret.encode():
        least, different, is_repeated = LEAST_SECRET, len(set(key)), False
        too_short = f"after “{PREFIX}” this one holds {len(key)}" if len(key) < least else ""
    else:
        size = next((len(one) for one in ALPHABETS if set(secret) <= set(one)), 95)
        least, different = math.ceil(8 * LEAST_SECRET / math.log2(size)), len(set(secret))
        is_repeated = secret in (secret + secret)[1:-1]
        too_short = f"of such characters as in this one it takes {least}" if len(secret) < least else ""
    is_regular = different < LEAST_DIFFERENT or is_repeated
    return "this one is too regular to be random" if is_regular and not too_short else too_short


def signature(key: bytes, named: str, moment: str, body: bytes) -> str:
    """Return the base64 signature of a body as it is sent."""
    signed = f"{named}.{moment}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


AMAZON = re.compile(r"(?:^|\.)s3[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com(?:\.cn)?$")
ANY_REGION = "us-east-1"  # Expected by stores without regions.
THERE_ALREADY = 412


class Objects(Protocol):
    """A store of objects by name; names consist of letters, digits, -_.= and slashes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def put(self, name: str, data: bytes) -> bool:
        """Create an object; return False if the name exists, whose object is not changed.

        Raises NotKept, exceptions of httpx, or OSError.
        """

    def get(self, name: str) -> bytes | None:
        """Return the content of an object, or None if there is none. Raises as `put` does."""


class NotKept(Exception):
    """The store answered an error; the message continues "it". `retry_after` is the header's value."""

    def __init__(self, answered: httpx.Response) -> None:
        leads = ", which leads elsewhere: is the region right?" if 300 <= answered.status_code < 400 else "."
        super().__init__(f"answered {answered.status_code}{_code_of(answered)}{leads}")
        self.retry_after = answered.headers.get("Retry-After", "")


def _code_of(answered: httpx.Response) -> str:
    """Return the S3 error code, which is more specific than the status."""
    found = re.search(rb"<Code>(\w{1,60})</Code>", answered.content[:4096])
    return f" ({found[1].decode()})" if found else ""


class Folder:
    """Objects as files below a folder. Files are written atomically, and synced before `put` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def put(self, name: str, data: bytes) -> bool:
        place = self._path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{uuid4().hex}")
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            place.hardlink_to(new)
        except FileExistsError:
            return False
        finally:
            new.unlink(missing_ok=True)
        for folder in (place.parent, *place.parent.parents):
            _sync(folder)
            if folder == self._path:
                break
        return True

    def get(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return (self._path / name).read_bytes()
        return None


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class S3:
    """Objects of a bucket below a prefix. `keys` are the id and secret of an access key, separated by a colon.

    `address` is the URL before the object's name: https://s3.eu-central-1.amazonaws.com/bucket/prefix or
    https://bucket.s3.eu-central-1.amazonaws.com/prefix. `?region=` sets the region if the host does not contain it. One
    request takes `seconds` at most.
    """

    def __init__(self, address: str, keys: str, guard: Guard, seconds: float) -> None:
        parts = urlsplit(address)
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path.rstrip("/")
        self._region = region_of(address)
        self._id, _, self._secret = keys.partition(":")
        self._deadline, self._seconds = Deadline(), seconds
        transport = GuardedTransport(guard, self._deadline)
        self._client = httpx.Client(transport=transport, trust_env=False, timeout=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def put(self, name: str, data: bytes) -> bool:
        answered = self._ask("PUT", name, data, {"if-none-match": "*"})
        if answered.status_code == THERE_ALREADY:
            return False
        if not answered.is_success:
            raise NotKept(answered)
        return True

    def get(self, name: str) -> bytes | None:
        answered = self._ask("GET", name, b"", {})
        if answered.status_code == httpx.codes.NOT_FOUND and b"NoSuchBucket" not in answered.content:
            return None
        if not answered.is_success:
            raise NotKept(answered)
        return answered.content

    def _ask(self, method: str, name: str, data: bytes, headers: dict[str, str]) -> httpx.Response:
        self._deadline.set(self._seconds)
        url = self._base + quote(f"{self._prefix}/{name}", safe="/-_.~")
        signed = s3_signature_headers(
            method, url, headers, data, (self._id, self._secret), self._region, datetime.now(UTC)
        )
        return self._client.request(method, url, content=data, headers=signed)


def region_of(address: str) -> str:
    """Return the region used to sign requests to this address."""
    parts = urlsplit(address)
    if named := parse_qs(parts.query).get("region"):
        return named[0]
    found = AMAZON.search(parts.hostname or "")
    return found[1] if found else ANY_REGION


def s3_signature_headers(
    method: str, url: str, headers: Mapping[str, str], data: bytes, keys: tuple[str, str], region: str, now: datetime
) -> dict[str, str]:
    """Return the headers of an S3 request with its signature (AWS Signature Version 4, "Authenticating Requests")."""
    parts, digest, moment = urlsplit(url), hashlib.sha256(data).hexdigest(), f"{now:%Y%m%dT%H%M%SZ}"
    told = {**headers, "host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": moment}
    names = ";".join(sorted(told))
    lines = "".join(f"{name}:{told[name]}\n" for name in sorted(told))
    request = f"{method}\n{parts.path}\n{parts.query}\n{lines}\n{names}\n{digest}"
    scope = f"{now:%Y%m%d}/{region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{keys[1]}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), hashlib.sha256)
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    credential = f"Credential={keys[0]}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**told, "authorization": f"AWS4-HMAC-SHA256 {credential}"}
