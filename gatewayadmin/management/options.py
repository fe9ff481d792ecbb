"""Types of the commands' options."""

import argparse
from datetime import UTC, datetime


def moment(text: str) -> datetime:
    """A date, or a date with a time; in UTC unless it says another zone."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2026-11-20.") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
