"""A silent name server delays no other look-ups."""

import asyncio
import socket
import threading

import pytest

from tests.eventually import PATIENCE
from wire import hosts
from wire.hosts import Resolver

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))]


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Block look-ups of names that begin with "silent" until the returned event is set."""
    heard = threading.Event()

    def look_up(host: str, port: int) -> object:
        if host.startswith("silent"):
            heard.wait(60)
            raise socket.gaierror("no answer")
        return FOUND

    monkeypatch.setattr(hosts, "_look_up", look_up)
    return heard


async def test_a_silent_name_holds_up_no_other(silence: threading.Event) -> None:
    names = Resolver()
    waiting = [asyncio.ensure_future(names.find("silent.example", 443)) for _ in range(200)]
    await asyncio.sleep(0)

    async with asyncio.timeout(PATIENCE):
        assert await names.find("other.example", 443) == FOUND

    silence.set()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, OSError) for one in told)
    names.close()


async def test_giving_up_leaves_the_others_waiting(silence: threading.Event) -> None:
    names = Resolver()
    patient = asyncio.ensure_future(names.find("silent.example", 443))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await names.find("silent.example", 443)
    assert not patient.done()

    silence.set()
    with pytest.raises(OSError, match="no answer"):
        await patient
    names.close()
