"""Object stores: an S3 bucket or a folder. Existing objects are never overwritten.

The S3 client is our own, because a library would resolve names itself and bypass the address guard.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import parse_qs, quote, urlsplit
from uuid import uuid4

from wire.guard import Guard
from wire.outbound import HttpAnswer, NoAnswer, OutboundClient

AMAZON = re.compile(r"(?:^|\.)s3[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com(?:\.cn)?$")
ANY_REGION = "us-east-1"  # Expected by stores without regions.
LARGEST = 1 << 30  # Maximum number of bytes read of an object.


class Objects(Protocol):
    """A store of objects by name; names consist of letters, digits, -_.= and slashes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def put(self, name: str, data: bytes) -> bool:
        """Create an object. Return False, and change nothing, if the name exists. Raises NoAnswer or OSError."""

    def get(self, name: str) -> bytes | None:
        """Return the content of an object, or None if there is none. Raises NoAnswer or OSError."""


class NotKept(NoAnswer):
    """The store answered with an error.

    The message contains the HTTP status and, if the answer has one, the S3 error code. `retry_after` is the value of
    the header Retry-After, or empty.
    """

    def __init__(self, answer: HttpAnswer) -> None:
        found = re.search(rb"<Code>(\w{1,60})</Code>", answer.body[:4096])
        code = f" ({found[1].decode()})" if found else ""
        leads = ", a redirect; the region may be wrong" if 300 <= answer.status < 400 else ""
        super().__init__(f"answered {answer.status}{code}{leads}")
        self.retry_after = answer.headers.get("Retry-After", "")


class Folder:
    """A store that keeps each object as a file in a folder or its subfolders.

    Files are written atomically, and synced to disk before `put` returns.
    """

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
    """A store of objects in an S3 bucket. The names of all its objects begin with a prefix.

    `address` is `https://HOST/BUCKET/PREFIX` or `https://BUCKET.HOST/PREFIX`. If the host name does not contain the
    region, `?region=` in the address sets the region. `keys` are the id and secret of an access key, separated by a
    colon. `seconds` is the time limit of each request.
    """

    def __init__(self, address: str, keys: str, guard: Guard, seconds: float) -> None:
        parts = urlsplit(address)
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path.rstrip("/")
        self._region = region_of(address)
        self._id, _, self._secret = keys.partition(":")
        self._client = OutboundClient(guard, LARGEST, seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def put(self, name: str, data: bytes) -> bool:
        answer = self._ask("PUT", name, data, {"if-none-match": "*"})  # Create or fail: RFC 9110 section 13.1.2.
        if answer.status == HTTPStatus.PRECONDITION_FAILED:
            return False
        if not 200 <= answer.status < 300:
            raise NotKept(answer)
        return True

    def get(self, name: str) -> bytes | None:
        answer = self._ask("GET", name, b"", {})
        if answer.status == HTTPStatus.NOT_FOUND and b"NoSuchBucket" not in answer.body:
            return None
        if not 200 <= answer.status < 300:
            raise NotKept(answer)
        return answer.body

    def _ask(self, verb: str, name: str, data: bytes, headers: dict[str, str]) -> HttpAnswer:
        url = self._base + quote(f"{self._prefix}/{name}", safe="/-_.~")
        keys = self._id, self._secret
        signed = s3_signature_headers(verb, url, headers, data, keys, self._region, datetime.now(UTC))
        return self._client.ask(verb, url, signed, data, needs_body=verb == "GET")


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
