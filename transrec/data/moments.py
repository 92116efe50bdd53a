"""Moments: seconds since 1970, UTC, and how people write them."""

from datetime import UTC, datetime


def date_and_time(seconds: int) -> str:
    """2019-09-01 12:00:00 of seconds since 1970; the number itself where it is of no date."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        # Some sets count time from a beginning of their own.
        return str(seconds)


def moment(seconds: int) -> str:
    """As `date_and_time`, midnight by its date alone."""
    return date_and_time(seconds).removesuffix(" 00:00:00")


def seconds_of(text: str) -> float:
    """Seconds since 1970 of a date, or date and time, of ISO 8601. Raises ValueError for what is none."""
    at = datetime.fromisoformat(text)
    # Without a zone of its own a date is of UTC, as the times of datasets are.
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
