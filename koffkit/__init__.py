"""koffkit: one lean shared backbone and small swappable memories, from a pretrained LLM (arXiv
2605.29075)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Run, compress, export, plan, restore, verify
    from .errors import DataError, IntegrityError, Interrupted, KoffkitError, ResourceError, UsageError
    from .planning.plan import Plan
    from .progress import Progress
    from .recipe.schema import Recipe
    from .runtime.model import KoffModel

# Imported on first use: `import koffkit` loads neither torch nor pydantic.
_LAZY = {
    "DataError": ".errors",
    "IntegrityError": ".errors",
    "Interrupted": ".errors",
    "KoffModel": ".runtime.model",
    "KoffkitError": ".errors",
    "Plan": ".planning.plan",
    "Progress": ".progress",
    "Recipe": ".recipe.schema",
    "ResourceError": ".errors",
    "Run": ".api",
    "UsageError": ".errors",
    "compress": ".api",
    "export": ".api",
    "plan": ".api",
    "restore": ".api",
    "verify": ".api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("koffkit")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module 'koffkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_LAZY, "__version__"]


__all__ = [
    "DataError",
    "IntegrityError",
    "Interrupted",
    "KoffModel",
    "KoffkitError",
    "Plan",
    "Progress",
    "Recipe",
    "ResourceError",
    "Run",
    "UsageError",
    "compress",
    "export",
    "plan",
    "restore",
    "verify",
]
