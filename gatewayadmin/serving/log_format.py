"""Log lines as JSON, each with the id of the request it belongs to, none with a secret in its path."""

import json
import logging
import re
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# A path may hold a secret: the link of a password reset, or a token pasted into the wrong place.
_SECRETS = re.compile(r"(?<=/reset/key/)[^/\s\"]+|(?<=gw[adkorsp]_)[0-9A-Za-z]{9,}")

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "request", "taskName"}
_BARE = len(vars(logging.makeLogRecord({})))


class JsonFormatter(logging.Formatter):
    """One line per record: time, level, logger, message, request id, and whatever `extra` held."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (present := request_id.get()) is not None:
            line["request_id"] = present
        fields = vars(record)
        if len(fields) > _BARE:
            line |= {name: value for name, value in fields.items() if name not in _PLAIN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _SECRETS.sub("...", _written(line))


class OneLine(logging.Filter):
    """Removes the traceback of errors that any client can cause: the message is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info, record.exc_text, record.stack_info = None, None, None
        if record.levelno > logging.WARNING:
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def _written(line: dict[str, object]) -> str:
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:  # orjson is fast, and refuses half characters and huge numbers.
        return json.dumps(line, default=str)
