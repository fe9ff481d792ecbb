"""A reverse proxy with configurable faults."""

from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from tests.asgi_server import Message, Receive, Scope, Send, answer, headers_of, live, read


@dataclass
class Exchange:
    """One request through the proxy, and the answer once the gateway has sent one."""

    path: str
    headers: dict[str, str]
    status: int = 0
    answered: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cookies: list[str] = field(default_factory=list)

    def answer(self, status: int, body: str = "", **headers: str) -> None:
        """Answer instead of the gateway."""
        self.status, self.body = status, body.encode()
        self.answered = {name.replace("_", "-"): value for name, value in headers.items()}


type Mischief = Callable[[Exchange], None]


def none(_: Exchange) -> None:
    """Do nothing: a proxy without a fault."""


@dataclass
class Front:
    """Proxies to `target`: `before` may change or answer a request, and `after` may change the gateway's answer."""

    target: str = ""
    before: Mischief = none
    after: Mischief = none

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        exchange = Exchange(scope["path"], headers_of(scope))
        body = await read(receive)
        self.before(exchange)
        if not exchange.status:
            await self._pass_on(scope, exchange, body)
            self.after(exchange)
        told = [*exchange.answered.items(), *(("set-cookie", cookie) for cookie in exchange.cookies)]
        headers = [(name.encode(), value.encode()) for name, value in told]
        await answer(send, exchange.status, exchange.body, headers=headers)

    async def _pass_on(self, scope: Message, exchange: Exchange, body: bytes) -> None:
        query = scope["query_string"].decode()
        url = f"{self.target}{exchange.path}" + (f"?{query}" if query else "")
        async with httpx.AsyncClient(trust_env=False) as http:
            got = await http.request(scope["method"], url, headers=exchange.headers, content=body)
        dropped = {"content-length", "transfer-encoding", "connection", "content-encoding", "set-cookie"}
        exchange.status, exchange.body, exchange.cookies = (
            got.status_code,
            got.content,
            got.headers.get_list("set-cookie"),
        )
        exchange.answered = {name: value for name, value in got.headers.items() if name not in dropped}
