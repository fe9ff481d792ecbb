"""Web addresses for display: the full host name, with the registered domain emphasised."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from urllib.parse import SplitResult, quote, urlsplit

from publicsuffixlist import PublicSuffixList

from wire import hosts

PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))
WEB = frozenset({"http", "https"})

_blank = re.compile(r"[\x00-\x20\x7f]")
_plain_host = re.compile(r"[a-z0-9_.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a URL in order. Only `rest`, the part after host name and port, may be shortened."""

    before: str
    domain: str  # Identifies the target: the registered domain, an IP address, or the scheme of an app.
    after: str
    rest: str
    whole: str


def parts(uri: str, *, longest: int = 60) -> Address:
    """Return the parts of `uri` in ASCII. The part after host name and port is cut at `longest` characters.

    If it is uncertain which host name a browser would open, `domain` is empty and the whole URL is in `before`.
    """
    try:
        split = urlsplit(uri)
        port = split.port
    except ValueError:
        return _unclear(uri)
    if "\\" in split.netloc or "%" in split.netloc or _blank.search(uri):  # Browsers parse such URLs differently.
        return _unclear(uri)
    scheme, whole = split.scheme, _ascii(uri)
    rest = _shortened(_ascii(uri[len(scheme) + 1 :].removeprefix("//").removeprefix(split.netloc)), longest)
    if scheme not in WEB:
        return (
            Address("", scheme, f"://{_ascii(split.netloc)}" if split.netloc else ":", rest, whole)
            if scheme
            else _unclear(uri)
        )
    host = _ascii_host(split)
    if not host:
        return _unclear(uri)
    domain = registered_domain(host)
    user = "\N{HORIZONTAL ELLIPSIS}@" if "@" in split.netloc else ""
    before = f"{scheme}://{user}{host.removesuffix(domain)}"
    return Address(before, domain, f":{port}" if port is not None else "", rest, whole)


def registered_domain(host: str) -> str:
    """Return the registered domain according to the public suffix list; if there is none, return `host`."""
    is_number = host.startswith("[") or host.rpartition(".")[2].isdecimal()
    return host if is_number else str(_suffixes().privatesuffix(host) or host)


def _ascii_host(split: SplitResult) -> str:
    """Return the host name in punycode, or the IP address (IPv6 in brackets). Return "" if it is invalid."""
    host = hosts.canonical_host(split.hostname or "")
    return host if host.startswith("[") or _plain_host.fullmatch(host) else ""


def _unclear(uri: str) -> Address:
    return Address(_ascii(uri), "", "", "", _ascii(uri))


def _ascii(text: str) -> str:
    """Return `text` percent-encoded, as in browsers. Invisible and direction-changing characters become visible."""
    return quote(text, safe=PRINTABLE)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # The package's own list; cached, since reading it takes 0.1 s.
