"""What every consumer's program does with its arguments. Not a consumer."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def run(main: Callable[[Path, Path, Path], None]) -> None:
    """Answer the questions of the command line; where that fails, `failed` says why.

    Args:
        main: answers those of an export.
    """
    export, questions, answers = (Path(argument).resolve() for argument in sys.argv[1:])
    try:
        main(export, questions, answers)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        answers.write_text(json.dumps({"failed": f"{type(error).__name__}: {lines[0]}"}))
