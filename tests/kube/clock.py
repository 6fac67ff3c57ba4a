"""Times in Kubernetes' format."""

from datetime import UTC, datetime, timedelta


def now(later=0):
    """Return the time in some seconds, without fractions: `2026-01-31T12:00:00Z`."""
    return (datetime.now(UTC) + timedelta(seconds=later)).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise_now():
    """Return the time with microseconds, as in log lines."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_since(text):
    """Return how many seconds ago a time was."""
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
