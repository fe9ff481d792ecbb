"""A mail server that accepts every mail, over TLS from the start or after STARTTLS."""

import asyncio
import ssl
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.forward_proxy import listening


@dataclass
class MailServer:
    """A mail server on `port`.

    `mails` are the received mails and `logins` the users who sent them; `plain` are the commands received without TLS.
    `meanwhile` is called before the server accepts a mail.
    """

    tls: ssl.SSLContext
    from_the_start: bool = False
    offers_tls: bool = True
    port: int = 0
    mails: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    meanwhile: Callable[[], object] = bool

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secured = self.from_the_start
        writer.write(b"220 mail.test\r\n")
        while line := (await reader.readline()).decode().strip():
            if not secured:
                self.plain.append(line)
            match line.split(" ", 2)[0].upper():
                case "EHLO":
                    more = b"250-AUTH PLAIN\r\n" if secured else b"250-STARTTLS\r\n" if self.offers_tls else b""
                    writer.write(b"250-mail.test\r\n" + more + b"250 8BITMIME\r\n")
                case "STARTTLS":
                    writer.write(b"220 Go on\r\n")
                    await writer.start_tls(self.tls)
                    secured = True
                case "AUTH":
                    self.logins.append(b64decode(line.split(" ")[2]).decode().replace("\0", " ").strip())
                    writer.write(b"235 Welcome\r\n")
                case "DATA":
                    self.meanwhile()
                    writer.write(b"354 Go on\r\n")
                    self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                    writer.write(b"250 Taken\r\n")
                case "QUIT":
                    writer.write(b"221 Bye\r\n")
                    return
                case _:
                    writer.write(b"250 Fine\r\n")


@contextmanager
def mail_server(tls: ssl.SSLContext, *, from_the_start: bool = False, offers_tls: bool = True) -> Iterator[MailServer]:
    """Yield a mail server on a loopback port."""
    server = MailServer(tls, from_the_start, offers_tls)
    with listening(server.serve, tls if from_the_start else None) as server.port:
        yield server
