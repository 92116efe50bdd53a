"""Converts moments between seconds since 1970 (UTC) and written dates."""

from datetime import UTC, datetime


def date_and_time(seconds: int) -> str:
    """Return seconds since 1970 as 2019-09-01 12:00:00, or as the bare number if no date can express it."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        # Some datasets count time from an epoch of their own.
        return str(seconds)


def moment(seconds: int) -> str:
    """Return the text of `date_and_time`, but only its date if the time is midnight."""
    return date_and_time(seconds).removesuffix(" 00:00:00")


def seconds_of(text: str) -> float:
    """Return the seconds since 1970 of an ISO 8601 date, or date and time. Raises ValueError for other text."""
    at = datetime.fromisoformat(text)
    # A date without a time zone is in UTC, like the times of datasets.
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
