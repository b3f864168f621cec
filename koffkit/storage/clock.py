"""Time stamps as our files have them."""

from __future__ import annotations

import time


def timestamp() -> str:
    """Now, in UTC, as YYYY-MM-DDTHH:MM:SSZ."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
