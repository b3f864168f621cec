"""OpenVINO, imported without its telemetry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from ...errors import IntegrityError, KoffkitError, UsageError

PACKAGES = ("openvino", "openvino_tokenizers", "openvino_genai", "nncf")
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
"""Without these a CPU that has narrower arithmetic uses it."""


def require_extra() -> None:
    """Refuse to go on without the extra.

    Raises:
        UsageError: a package of it is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--format openvino: the extra is not installed ({', '.join(missing)} missing); "
            "pip install 'koffkit[openvino]'."
        )


def load_openvino() -> Any:
    """The module `openvino`. It and nncf report their use over the network as soon as they are imported,
    unless they cannot import the package that does so."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def versions() -> dict[str, str]:
    """Of what converts and runs an export."""
    names = ("openvino", "openvino-genai", "openvino-tokenizers", "nncf", "transformers")
    return {name: version(name) for name in names}


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """What fails inside OpenVINO or its converters as one of koffkit's errors.

    Args:
        what: is being done.

    Raises:
        IntegrityError: it failed.
    """
    try:
        yield
    except (KoffkitError, MemoryError):
        raise
    except Exception as error:  # they have no class of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if not line.startswith("Exception from")), type(error).__name__)
        raise IntegrityError(
            f"--format openvino: {what} failed ({reason}); nothing was published. Export with --format hf, "
            f"and report this with these versions: {versions()}."
        ) from error
