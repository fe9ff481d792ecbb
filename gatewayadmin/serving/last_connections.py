"""Closes a listening socket gracefully: established connections are answered, new ones refused.

When the last process closes such a socket, the kernel resets the connections that nobody had accepted yet. Their
clients cannot know whether their call was made, so nginx, for one, answers 502 instead of asking the next process.
"""

import asyncio
import ctypes
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

# A filter of the kernel (classic BPF) over the segments that reach a listening socket: drop what asks to connect.
SO_ATTACH_FILTER = 26
NO_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),  # Load the flags of the TCP header.
    (0x45, 0, 1, 0x02),  # Is it a SYN?
    (0x06, 0, 0, 0),  # Drop it: its sender asks again a second later, and is refused once nobody listens.
    (0x06, 0, 0, 0xFFFFFFFF),  # Let it through.
)
LOOKS, LOOK_S = 4, 0.05
HEARD_S = 2.0  # A proxy sends its call as soon as it has connected, once it has a processor to do it on.


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def let_nobody_in(sockets: Iterable[socket.socket]) -> None:
    """Make the kernel drop new connection attempts to these sockets, in all processes.

    Linux only: elsewhere connections that nobody has accepted are reset when the socket is closed.
    """
    instructions = (_Instruction * len(NO_NEW_CONNECTIONS))(*(_Instruction(*each) for each in NO_NEW_CONNECTIONS))
    program = _Program(len(instructions), instructions)
    for each in sockets:
        if sys.platform == "linux":
            with suppress(OSError):  # Kernels may be built without.
                each.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))


async def wait_for_those_who_came() -> None:
    """Wait until the event loop has accepted or read all pending connections."""
    for _ in range(LOOKS):  # Each is a look of the event loop at its sockets, however late it comes.
        await asyncio.sleep(LOOK_S)


async def wait_for_their_calls(are_awaited: Callable[[], bool]) -> None:
    """Wait until all connections have sent their request, or for HEARD_S."""
    clock = asyncio.get_running_loop().time
    until = clock() + HEARD_S
    while are_awaited() and clock() < until:  # noqa: ASYNC110 - nobody tells of a connection that is heard
        await asyncio.sleep(LOOK_S)
