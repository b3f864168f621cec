"""ollama: not run. The export of format `gguf` has Modelfiles for it."""

from __future__ import annotations

REASON = (
    "not run: no registry that this command asks (PyPI) has its program, only clients for one that is "
    "installed already"
)
