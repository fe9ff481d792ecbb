"""Allowed addresses of servers."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import upstreams
from tests.conftest import Run
from wire.guard import METADATA, AddressRefused, Guard, GuardedTransport, LeadsBack, OwnEndpoints, UrlRefused

PUBLIC = [
    *("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
    "2a00:1450:4001:800:0:5efe:8.8.8.8",  # ISATAP.
]
INSIDE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.5",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.1.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.5",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a00:5::1",
    "2001:0:53aa::1",
    "2001:db8::1",
    "fc00::1",
    "fd12::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "100::1",
]


def test_public_addresses_are_admitted_with_tls_only() -> None:
    assert [address for address in PUBLIC if not Guard().admits(address)] == []
    assert [address for address in PUBLIC if Guard().admits(address, encrypted=False)] == []


def test_addresses_that_lead_inside_are_refused() -> None:
    tunnels = [*tunnelled(INSIDE_V4), *tunnelled("127.0.0.1"), *tunnelled(METADATA_V4)]

    assert [address for address in (*INSIDE, *map(str, METADATA), *tunnels) if Guard().admits(address)] == []


def test_an_allowed_range_opens_its_addresses_in_every_form() -> None:
    guard = Guard((ip_network("10.0.0.0/8"),))

    for address in ("10.0.0.5", "::ffff:10.0.0.5", "64:ff9b::a00:5", "2002:a00:5::"):
        assert guard.admits(address), address
        assert guard.admits(address, encrypted=False), address
    assert not guard.admits("192.168.0.1")


def test_names_given_by_a_public_server_are_never_private() -> None:
    guard = Guard((ip_network("10.0.0.0/8"),), OwnEndpoints.of("https://gateway.example.com", "", hosts=()))

    assert guard.is_inside("10.0.0.5")
    assert guard.is_inside("::ffff:10.0.0.5")
    assert not guard.is_inside("8.8.8.8")
    assert not guard.outside().admits("10.0.0.5")
    assert guard.outside().admits("8.8.8.8")
    assert guard.outside().own == guard.own


def test_metadata_services_stay_closed_inside_an_allowed_range_in_whatever_they_are_wrapped() -> None:
    everything = Guard((ip_network("0.0.0.0/0"), ip_network("::/0")))

    assert [one for one in (*map(str, METADATA), *tunnelled(METADATA_V4)) if everything.admits(one)] == []


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_every_wrapping(address: IPv4Address) -> None:
    wrapped = (
        IPv6Address(int(IPv6Address("::ffff:0:0")) | int(address)),
        IPv6Address(int(IPv6Address("64:ff9b::")) | int(address)),
        IPv6Address(int(IPv6Address("2002::")) | int(address) << 80),
    )

    assert {Guard().admits(str(each)) for each in wrapped} == {Guard().admits(str(address))}


@pytest.mark.full
@given(st.ip_addresses())
def test_nothing_private_is_ever_admitted(address: IPv4Address | IPv6Address) -> None:
    if Guard().admits(str(address)):
        inner = address.ipv4_mapped or address.sixtofour if isinstance(address, IPv6Address) else None
        assert (inner or address).is_global or address in ip_network("64:ff9b::/96")
        assert not address.is_multicast


def test_invalid_addresses_are_refused() -> None:
    texts = ("", "localhost", "0x7f.1", "1", "not an address", "127.0.0.1:80")

    assert [text for text in texts if Guard((ip_network("0.0.0.0/0"),)).admits(text)] == []


def test_urls_that_can_be_refused_at_sight_are() -> None:
    for url in (
        "http://example.com/mcp",
        "file:///etc/passwd",
        "https://",
        "https:///mcp",
        "https://example.com:99999/",
        "https://example.com:0/",
        "https://user:secret@example.com/",
        "https://[::1/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://0x7f.1/",
        "https://2130706433/",
        "https://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/",
        "builtin:quickstart",
        "",
    ):
        with pytest.raises(UrlRefused):
            Guard().check_url(url)
    with pytest.raises(UrlRefused, match="port must be at least 1"):
        Guard().check_url("https://example.com:0/")


def test_a_name_is_judged_by_its_address() -> None:
    with pytest.raises(UrlRefused, match="leads to an address"):
        Guard().check_now("https://localhost/mcp")
    Guard((ip_network("127.0.0.0/8"), ip_network("::1/128"))).check_now("http://localhost:1/mcp")


def test_httpx_asks_the_guard_for_names_and_literals(run: Run) -> None:
    upstream = run(upstreams.garbage(b"{}", kind="application/json"))
    open_guard = Guard((ip_network("127.0.0.0/8"), ip_network("::1/128")))

    for host in ("127.0.0.1", "localhost"):
        url = f"http://{host}:{upstream.port}/"
        with (
            httpx.Client(transport=GuardedTransport(Guard()), trust_env=False) as client,
            pytest.raises(AddressRefused),
        ):
            client.get(url)
        with httpx.Client(transport=GuardedTransport(open_guard), trust_env=False) as client:
            assert client.get(url).json() == {}

    assert len(upstream.seen) == 2


INSIDE_V4, METADATA_V4 = "10.0.0.5", "169.254.169.254"


def tunnelled(inner: str) -> list[str]:
    """Return IPv6 addresses that lead to this IPv4 address through a tunnel or translator."""
    number = int(ip_address(inner))
    forms = {
        "ISATAP": (0x2A00_1450_4001_0800 << 64) | (0x5EFE << 32) | number,
        "ISATAP, of a public address": (0x2A00_1450_4001_0800 << 64) | (0x0200_5EFE << 32) | number,
        "Teredo": (0x2001_0000 << 96) | (0x0808_0808 << 64) | (number ^ 0xFFFFFFFF),
        "Teredo server": (0x2001_0000 << 96) | (number << 64),
        "compatible": number,
        "mapped": (0xFFFF << 32) | number,
        "translated": (0xFFFF << 48) | number,
        "6to4": (0x2002 << 112) | (number << 80) | 1,
        "NAT64": (0x0064_FF9B << 96) | number,
        "local NAT64": (0x0064_FF9B_0001 << 80) | number,
        "local NAT64, in the middle": (0x0064_FF9B_0001 << 80) | (number >> 16 << 64) | ((number & 0xFFFF) << 40),
    }
    return [str(IPv6Address(form)) for form in forms.values()]


OWN = OwnEndpoints.of(
    "https://gateway.example.com", "http://127.0.0.1:8000", hosts=["gateway.example.com", "localhost", "[::1]"]
)


def test_a_url_of_our_own_is_told_in_every_spelling() -> None:
    for url in (
        "https://gateway.example.com/mcp/work",
        "https://GATEWAY.example.com:443/mcp/work/",
        "https://gateway.example.com./mcp/work",
        "https://gateway.example.com//mcp/work",
        "https://gateway.example.com/%6Dcp/work",
        "https://gateway.example.com/x/../mcp/work",
        "http://gateway.example.com:8000/mcp/work",
        "http://localhost:8000/anything",
        "http://127.1:8000/mcp/work",
        "http://127.8.8.8:8000/mcp/work",
        "http://[::1]:8000/mcp/work",
        "http://[::ffff:127.0.0.1]:8000/mcp/work",
        "http://0.0.0.0:8000/mcp/work",
    ):
        assert OWN.has(url), url
        with pytest.raises(UrlRefused, match="this gateway itself"):
            Guard((ip_network("0.0.0.0/0"), ip_network("::/0")), OWN).check_url(url)
    for other in (
        "https://gateway.example.com/other/mcp",
        "https://gateway.example.com/mcpx",
        "https://other.example.com/mcp/work",
        "https://gateway.example.com:8443/mcp/work",
        "http://127.0.0.1:8001/mcp/work",
        "http://10.0.0.5:8000/mcp/work",
    ):
        assert not OWN.has(other), other


def test_a_name_that_leads_to_where_we_listen_is_refused_when_a_socket_is_opened() -> None:
    guard = Guard((ip_network("127.0.0.0/8"),), OWN)
    with pytest.raises(LeadsBack):
        guard.check("127.0.0.1", 8000, encrypted=False)
    guard.check("127.0.0.1", 8001, encrypted=False)
