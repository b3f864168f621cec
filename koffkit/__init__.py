"""koffkit: one lean shared backbone and small swappable memories, from a pretrained LLM (arXiv
2605.29075)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import KoffkitError
    from .runtime.model import KoffModel
    from .stages.engine import run_recipe as compress

_LAZY = {
    "KoffModel": ".runtime.model:KoffModel",
    "KoffkitError": ".errors:KoffkitError",
    "compress": ".stages.engine:run_recipe",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("koffkit")
    if name in _LAZY:
        module, _, attribute = _LAZY[name].partition(":")
        return getattr(import_module(module, __name__), attribute)
    raise AttributeError(f"module 'koffkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_LAZY, "__version__"]


__all__ = ["KoffModel", "KoffkitError", "compress"]
