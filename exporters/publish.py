"""What exporters publish with. It lives in the core, which publishes memories the same way."""

from __future__ import annotations

from ..publish import require_space, staged

__all__ = ["require_space", "staged"]
