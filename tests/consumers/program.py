"""What every consumer's program does with its arguments. Not a consumer."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def run(main: Callable[[Path, Path, Path], None]) -> None:
    """Answer all questions of the command line, three arguments each; where that fails, `failed` says why.

    Args:
        main: answers those of one export.
    """
    paths = [Path(argument).resolve() for argument in sys.argv[1:]]
    for export, questions, answers in zip(paths[::3], paths[1::3], paths[2::3], strict=True):
        try:
            main(export, questions, answers)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            answers.write_text(json.dumps({"failed": f"{type(error).__name__}: {lines[0]}"}))
