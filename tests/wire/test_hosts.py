"""Different spellings of one host name or address are compared as equal."""

from oauth.client_metadata import same_resource
from proxy.request import Origins
from ui import addresses
from wire import hosts
from wire.forward_proxy import spelled
from wire.oauth_client import place_of

SPELLINGS = [
    "https://legit.example/x",
    "https://LEGIT.example/x",
    "https://legit.example./x",
    "https://legit.example:443/x",
    "https://legit%2eexample/x",
    "https://%6cegit.example/x",
    "https://legit.example\\.evil.com/x",
    "https://legit.example\\@evil.com/x",
    "https://user@legit.example/x",
]
OTHERS = ["http://legit.example/", "https://legit.example:8443/", "https://legit.example.evil.com/", "https://legit/"]


def test_spellings_of_one_origin_are_one_place_and_other_origins_are_others() -> None:
    for url in SPELLINGS:
        assert hosts.origin_of(url) == place_of(url) == ("https", "legit.example", 443), url
    assert place_of(SPELLINGS[0]) not in map(place_of, OTHERS)


def test_names_and_addresses_have_one_spelling() -> None:
    canonical = {
        "xn--bcher-kva.example": "xn--bcher-kva.example",
        "b\u00fccher\u3002example.": "xn--bcher-kva.example",
        "STRA\u00dfE.example.": "xn--strae-oqa.example",
        "[0:0::1]": "[::1]",
        "127.1": "127.0.0.1",
        "0x7f.0.0.01.": "127.0.0.1",
        "2130706433": "127.0.0.1",
        "4294967296": "4294967296",
    }

    assert {host: hosts.canonical_host(host) for host in canonical} == canonical
    assert spelled("STRA\u00dfE.example.") == "xn--strae-oqa.example", (
        "the outbound proxy is asked for the compared host"
    )


def test_a_page_shows_a_host_once() -> None:
    for spelling in ("https://app.example./cb", "https://APP.example/cb"):
        shown = addresses.parts(spelling)

        assert shown.before + shown.domain + shown.after == "https://app.example"


def test_a_browser_may_call_from_our_own_origin_however_it_is_configured() -> None:
    for public_url in ("https://gateway.example.com", "https://Gateway.Example.com:443"):
        for origin in ("https://gateway.example.com", "https://GATEWAY.example.com:443"):
            assert Origins(public_url, []).allows(origin)
    for other in ("https://gateway.example.com:8443", "https://gateway.example.com.evil.com", "https://["):
        assert not Origins("https://gateway.example.com", []).allows(other)


def test_a_resource_is_found_however_its_host_is_spelled() -> None:
    gateway = "https://gw.example/mcp/work"
    for spelling in ("https://GW.example:443/mcp/work/", "https://gw.example./mcp/work"):
        assert same_resource(spelling, gateway)
        assert not same_resource(spelling, "https://gw.example/mcp/Work")
    for other in (
        *("http://[", "https://gw.example:x/mcp/work", "https://me@gw.example/mcp/work"),
        "https://gw.example\\x/mcp/work",
    ):
        assert not same_resource(other, gateway), other
