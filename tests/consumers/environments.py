"""An environment for each consumer, made by the command and kept under `build/consumers`."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = Path("build") / "consumers"
TORCH = "torch"


class With:
    """koffkit with an extra, as a consumer's module says it."""

    def __init__(self, extra: str) -> None:
        self.PACKAGES = [TORCH, f"-e.[{extra}]"]


def environment(name: str, consumer: Any, constraints: Path, torch_index: str | None = None) -> Path:
    """A Python with the consumer's packages and no others, made once.

    Args:
        name: of the consumer.
        consumer: its module: `PACKAGES`; `UNWANTED` (what other packages bring along and is of no use);
            `PLACE` (the consumer whose environment it shares).
        constraints: versions that pip must keep to, torch's among them: pip by itself may take a build of
            torch that is gigabytes larger.
        torch_index: the package index for torch alone; None: the default.

    Raises:
        subprocess.CalledProcessError: a package cannot be had.
    """
    folder = (ENVIRONMENTS / getattr(consumer, "PLACE", name)).absolute()
    python, done = folder / "bin" / "python", folder / "packages.json"
    unwanted = list(getattr(consumer, "UNWANTED", ()))
    wanted = {"packages": consumer.PACKAGES, "unwanted": unwanted, "constraints": constraints.read_text()}
    if done.is_file() and json.loads(done.read_text()) == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    pip = [python, "-m", "pip", "--quiet"]
    install = [*pip, "install", "-c", constraints.absolute()]
    if TORCH in consumer.PACKAGES:  # first, and alone: the index for it has little else
        index = [] if torch_index is None else ["--index-url", torch_index]
        subprocess.run([*install, *index, TORCH], check=True, cwd=ROOT)
    subprocess.run([*install, *consumer.PACKAGES], check=True, cwd=ROOT)
    if unwanted:
        subprocess.run([*pip, "uninstall", "--yes", *unwanted], check=True)
    done.write_text(json.dumps(wanted))
    return python
