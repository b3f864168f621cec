"""Run every consumer on every case and print one table. What was measured stays: a command that was
interrupted goes on where it was."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .asking import HERE, Case, measure, module_of
from .cases import CASES, Ready, real
from .environments import ROOT, With, environment
from .table import TABLE, Row, details, due, keep, kept, summary

NOT_CONSUMERS = (
    "__init__",
    "__main__",
    "asking",
    "cases",
    "conftest",
    "environments",
    "http_server",
    "likelihoods",
    "program",
    "reference",
    "table",
)
REAL = "real"


def consumers() -> list[str]:
    """The names of all consumers: the other files of this folder."""
    names = (path.stem for path in sorted(HERE.glob("*.py")))
    return [name for name in names if name not in NOT_CONSUMERS and not name.startswith("test_")]


class Environments:
    """The environments of consumers and exporters, made when they are first needed.

    Args:
        constraints, torch_index: see `environment`.
    """

    def __init__(self, constraints: Path, torch_index: str | None) -> None:
        self._more = constraints, torch_index
        self._failed: dict[str, str] = {}

    def of(self, name: str) -> tuple[Path, Path | None]:
        """A consumer's Python, and the one that makes its exports (None: this one).

        Raises:
            RuntimeError: a package cannot be had; pip is asked once.
        """
        if name in self._failed:
            raise RuntimeError(self._failed[name])
        consumer = module_of(name)
        extra = getattr(consumer, "EXTRA", None)  # what the export needs beside koffkit
        try:
            python = environment(name, consumer, *self._more)
            exporter = None if extra is None else environment(f"export_{extra}", With(extra), *self._more)
        except subprocess.CalledProcessError as error:
            self._failed[name] = f"pip ended with code {error.returncode}"
            raise RuntimeError(self._failed[name]) from None
        return python, exporter


def run(name: str, case: Case, environments: Environments) -> list[Row]:
    """The rows of a consumer and a case."""
    consumer = module_of(name)
    if not hasattr(consumer, "PACKAGES"):
        return [Row(case="all", reason=consumer.REASON)]
    try:
        python, exporter = environments.of(name)
    except RuntimeError as error:
        return [Row(case=case.name, reason=str(error), failed=True)]
    return list(measure(name, python, exporter, case))


def run_all(
    names: list[str], makers: dict[str, Callable[[Path], Ready]], environments: Environments, fresh: bool
) -> None:
    """Measure what is not kept, one case after another, and keep it.

    Args:
        names: of consumers.
        makers: of cases.
        environments: of the consumers.
        fresh: measure what is kept, too.
    """
    for case_name, make in makers.items():
        with tempfile.TemporaryDirectory() as place:
            case = Case(case_name, make, Path(place))
            for name in names:
                if not (fresh or due(name, case_name)):
                    continue
                start = time.monotonic()
                keep(name, run(name, case, environments))
                sys.stderr.write(f"{case_name}: {name}: {time.monotonic() - start:.0f} s\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.consumers", description=__doc__)
    parser.add_argument("--only", choices=consumers(), action="append", help="a consumer; may be given again")
    parser.add_argument("--case", choices=[*CASES, REAL], action="append", help="a case; may be given again")
    parser.add_argument("--real", type=Path, help="a real model, or a run of one: one more case")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--kept", action="store_true", help="only print what was measured before")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints-cpu.txt")
    parser.add_argument("--torch-index", help="the package index for torch")
    given = parser.parse_args()
    if given.real is None and REAL in (given.case or ()):
        parser.error(f"--case {REAL} needs --real")
    return given


def main() -> None:
    given = arguments()
    sys.path.append(str(HERE))  # a consumer imports another as the program does
    names = given.only or consumers()
    makers = CASES | ({} if given.real is None else {REAL: real(given.real)})
    if not given.kept:
        wanted = {name: makers[name] for name in given.case or makers}
        run_all(names, wanted, Environments(given.constraints, given.torch_index), given.fresh)
    rows = {name: kept(name, [*CASES, REAL]) for name in names}
    tables = [summary(rows), *(details(name, own) for name, own in rows.items())]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("\n".join(tables), encoding="utf-8")
    sys.stdout.write("\n".join([*tables[1:], tables[0]]))


if __name__ == "__main__":
    main()
