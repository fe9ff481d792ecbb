"""Log lines as JSON, each with the id of its request. Secrets in paths are masked."""

import json
import logging
import re
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# A path may contain a secret: the key of a password link or an invitation, the last part of an address below
# /directory/, or a token that somebody pasted into a URL.
_SECRETS = re.compile(
    r"(?:(?<=/reset/key/)|(?<=/accounts/join/))[^/\s\"]+"
    r"|(?<=/directory/)[\w-]{32}(?![\w-])|(?<=gw[adkorsp]_)[0-9A-Za-z]{9,}"
)

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "request", "taskName"}


class JsonFormatter(logging.Formatter):
    """One line per record: time, level, logger, message, request id, and the values of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (present := request_id.get()) is not None:
            line["request_id"] = present
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _SECRETS.sub("...", json.dumps(line, default=str, separators=(",", ":")))


class OneLine(logging.Filter):
    """Removes the traceback of an error that any client can cause, and lowers the error's level to warning."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info, record.exc_text, record.stack_info = None, None, None
        if record.levelno > logging.WARNING:
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
