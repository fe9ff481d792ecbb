"""Whose call goes to a server next: a bound on calls under way, shared fairly by the people who call.

Whoever holds places may take another only while enough of them stay free, and the last free one is for somebody who
holds none. So slow calls of one person, or of one connection, never make another's first call wait. Those who must
wait take turns: person by person, and connection by connection within a person.
"""

import asyncio
from collections import deque

MOST_WAITING = 1024  # At one server.
MOST_WAITING_OF_ONE = 128  # Of one person, at one server.

type Turn = asyncio.Future[None]


class Full(Exception):
    """No more may wait."""


class FairQueue:
    """The places of one server: enter before a call, leave after it."""

    __slots__ = ("_held", "_under_way", "_waiting", "_waiting_count", "bound")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._under_way = 0
        # The places each person and each connection holds; neither is in here without one.
        self._held: dict[str, int] = {}
        # Persons in the order of their turns, their connections likewise, and the calls of each.
        self._waiting: dict[str, dict[str, deque[Turn]]] = {}
        self._waiting_count = 0

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return self._waiting_count

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nobody waits."""
        return not self._under_way and not self._waiting_count

    def enter_now(self, person: str, connection: str) -> bool:
        """Take a place when there is one to take at once."""
        if not self._may_start(person, connection):
            return False
        self._start(person, connection)
        return True

    async def enter(self, person: str, connection: str) -> None:
        """Wait for a place and take it. Raises Full when too many wait already."""
        connections = self._waiting.get(person, {})
        if self._waiting_count >= MOST_WAITING or sum(map(len, connections.values())) >= MOST_WAITING_OF_ONE:
            raise Full
        turn: Turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(person, {}).setdefault(connection, deque()).append(turn)
        self._waiting_count += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._withdraw(person, connection, turn)
            else:  # It was given a place at the very moment it gave up.
                self.leave(person, connection)
            raise

    def leave(self, person: str, connection: str) -> None:
        """Give a place back; who may have it next gets it."""
        self._under_way -= 1
        for holder in (person, connection):
            left = self._held[holder] - 1
            if left:
                self._held[holder] = left
            else:
                del self._held[holder]
        while self._waiting_count and self._start_next():
            pass

    def _may_start(self, person: str, connection: str) -> bool:
        free = self.bound - self._under_way
        of_person = self._held.get(person, 0)
        if free <= 0 or not of_person:
            return free > 0
        # One person holds two thirds at most when nobody else calls, one connection half.
        return of_person < 2 * (free - 1) and self._held.get(connection, 0) < free - 1

    def _start(self, person: str, connection: str) -> None:
        self._under_way += 1
        held = self._held
        held[person] = held.get(person, 0) + 1
        held[connection] = held.get(connection, 0) + 1

    def _start_next(self) -> bool:
        """Give a place to the next who may have one; False when there is none."""
        for person, connections in self._waiting.items():
            for connection, turns in connections.items():
                # Whoever gave up in this very round of the loop has not left the line yet.
                turn = next((turn for turn in turns if not turn.done()), None)
                if turn is not None and self._may_start(person, connection):
                    turns.remove(turn)
                    self._start(person, connection)
                    self._took_turn(person, connection)
                    turn.set_result(None)
                    return True
        return False

    def _took_turn(self, person: str, connection: str) -> None:
        """Put both at the end of their lines, or out of them when nothing of theirs waits."""
        self._waiting_count -= 1
        connections = self._waiting.pop(person)
        turns = connections.pop(connection)
        if turns:
            connections[connection] = turns
        if connections:
            self._waiting[person] = connections

    def _withdraw(self, person: str, connection: str, turn: Turn) -> None:
        self._waiting_count -= 1
        connections = self._waiting[person]
        connections[connection].remove(turn)
        if not connections[connection]:
            del connections[connection]
        if not connections:
            del self._waiting[person]
