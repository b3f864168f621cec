"""What the machine at hand has."""

from __future__ import annotations

import os


def free_memory() -> int:
    """Bytes of memory that are free, as far as the system says."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on every system
        return 1 << 62
