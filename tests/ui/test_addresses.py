"""The host of a link's URL is visible, however long or unusual the URL is."""

import pytest
from django.template import Context, Template

from ui.addresses import parts

LONG = "https://claude.ai." + "a" * 60 + "." + "b" * 55 + ".evil.com/cb"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://app.example.com/cb", "https://app.[example.com]/cb"),
        ("https://claude.ai.evil.co.uk/cb", "https://claude.ai.[evil.co.uk]/cb"),
        ("https://evil.github.io/cb", "https://[evil.github.io]/cb"),
        ("https://APP.Example.COM:8443/cb", "https://app.[example.com]:8443/cb"),
        ("https://claude.ai:443@evil.com:1/cb", "https://\N{HORIZONTAL ELLIPSIS}@[evil.com]:1/cb"),
        ("http://[::1]:33418/cb", "http://[[::1]]:33418/cb"),
        ("https://\u0430pple.com/cb", "https://[xn--pple-43d.com]/cb"),
        ("https://m\u00fcller.example.de/cb", "https://xn--mller-kva.[example.de]/cb"),
        ("https://evil.com\u3002claude.ai/cb", "https://evil.com.[claude.ai]/cb"),
        ("cursor://anysphere.cursor-retrieval/oauth", "[cursor]://anysphere.cursor-retrieval/oauth"),
        ("https://evil.com\\@claude.ai/cb", "https://evil.com\\@claude.ai/cb"),
        ("https://evil.com\t.claude.ai/cb", "https://evil.com%09.claude.ai/cb"),
        ("https://%65vil.com/cb", "https://%65vil.com/cb"),
        ("https://evil.com:x/cb", "https://evil.com:x/cb"),
        ("https:///cb", "https:///cb"),
        ("https://[::1/cb", "https://[::1/cb"),
        ("https://\u2044evil.com/cb", "https://%E2%81%84evil.com/cb"),
        ("https://xn--a.\u00fc.com/cb", "https://xn--a.%C3%BC.com/cb"),
        ("", ""),
        ("https://example.com/\u202ecb?x=\u200b#y", "https://[example.com]/%E2%80%AEcb?x=%E2%80%8B#y"),
        ("https://example.com?https://claude.ai", "https://[example.com]?https://claude.ai"),
        (LONG, LONG.replace("evil.com", "[evil.com]")),
    ],
)
def test_the_host_is_whole_and_what_somebody_registered_stands_out(uri: str, shown: str) -> None:
    address = parts(uri)

    domain = f"[{address.domain}]" if address.domain else ""
    assert f"{address.before}{domain}{address.after}{address.rest}" == shown


def test_only_what_follows_the_host_is_shortened() -> None:
    host = ".".join(["a" * 60] * 4) + ".example.com"

    address = parts(f"https://{host}:8443/{'p' * 500}?{'q' * 500}", longest=20)

    assert f"{address.before}{address.domain}{address.after}" == f"https://{host}:8443"
    assert address.rest == "/" + "p" * 18 + "\N{HORIZONTAL ELLIPSIS}"


def test_markup_in_an_address_is_text() -> None:
    page = Template("{% load ui %}{% address uri %}").render(Context({"uri": "https://e.com/<b>\"'x"}))

    assert page == (
        '<code class="address" title="https://e.com/&lt;b&gt;&quot;&#x27;x">https://<b>e.com</b>/&lt;b&gt;&quot;&#x27;x</code>'
    )
