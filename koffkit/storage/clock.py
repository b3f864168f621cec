"""Timestamps in koffkit's files."""

from __future__ import annotations

import time


def timestamp() -> str:
    """The current time in UTC, as YYYY-MM-DDTHH:MM:SSZ."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
