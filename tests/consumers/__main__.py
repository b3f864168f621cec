"""Run every consumer on every case and print one table."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from koffkit.exporters import export

from koffkit.errors import KoffkitError

from .cases import CASES, NEW_TOKENS, Ready, real
from .reference import Compared, Reference

HERE = Path(__file__).parent
ENVIRONMENTS = Path("build") / "consumers"
NOT_CONSUMERS = ("__init__", "__main__", "cases", "reference")
HEAD = ("case", "setting", "condition", "tokens equal", "max |diff|", "float32", "KL", "")


def consumers() -> list[str]:
    """The names of all consumers: the other files of this folder."""
    names = (path.stem for path in sorted(HERE.glob("*.py")))
    return [name for name in names if name not in NOT_CONSUMERS and not name.startswith("test_")]


def environment(name: str, packages: list[str]) -> Path:
    """A Python with the consumer's packages and no others, made once."""
    folder = ENVIRONMENTS / name
    python, done = folder / "bin" / "python", folder / "packages.json"
    if not done.is_file() or json.loads(done.read_text()) != packages:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        done.write_text(json.dumps(packages))
    return python.absolute()


def ask(python: Path, name: str, artefact: Path, reference: Reference, root: Path) -> dict[str, Any]:
    """A consumer's answers about one export."""
    questions, answers = root / "questions.json", root / "answers.json"
    questions.write_text(json.dumps(reference.questions()))
    command = [python, HERE / f"{name}.py", artefact, questions, answers]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=1800)
    if done.returncode:
        raise KoffkitError((done.stderr or done.stdout).strip().splitlines()[-1])
    return dict(json.loads(answers.read_text()))


def rows_of(reference: Reference, answers: dict[str, Any]) -> Iterator[tuple[str, str, Compared]]:
    """`(setting, condition, comparison)`: the worst of each condition."""
    for setting, given in answers["settings"].items():
        worst: dict[str, Compared] = {}
        for asked, found in zip(reference.asked, reference.compare(given), strict=True):
            halves = [half for half in ("lora", "kv") if asked[half]]
            condition = " + ".join(halves) or "backbone"
            before = worst.get(condition)
            if before is None or (found.equal, -found.max_abs) < (before.equal, -before.max_abs):
                worst[condition] = found
        yield from ((setting, condition, found) for condition, found in worst.items())


def measure(name: str, python: Path, cases: dict[str, Ready], references: dict[str, Reference]) -> list[Any]:
    """The rows of one consumer, and what else to print."""
    consumer = importlib.import_module(f"{__package__}.{name}")
    rows: list[Any] = []
    for case, ready in cases.items():
        with tempfile.TemporaryDirectory() as place:
            artefact = Path(place) / "artefact"
            try:
                export(ready.run, artefact, consumer.FORMAT, consumer.OPTIONS)
                answers = ask(python, name, artefact, references[case], Path(place))
            except KoffkitError as error:
                rows.append((case, "", "", "", "", "", "", str(error)))
                continue
        rows.append(answers["versions"])
        for setting, condition, found in rows_of(references[case], answers):
            figures = (
                f"{found.equal} of {found.tokens}",
                f"{found.max_abs:.1e}",
                f"{found.floor:.1e}",
                f"{found.kl:.0e}",
            )
            rows.append((case, setting, condition, *figures, found.reason))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.consumers", description=__doc__)
    parser.add_argument("--only", choices=consumers(), action="append", help="a consumer; may be given again")
    parser.add_argument("--case", choices=list(CASES), action="append", help="a case; may be given again")
    parser.add_argument("--real", type=Path, help="the folder of a real model: one more case")
    given = parser.parse_args()
    sys.path.append(str(HERE))  # a consumer imports another as the program does
    makers = {name: CASES[name] for name in given.case or CASES}
    if given.real is not None:
        makers["real"] = real(given.real)
    with tempfile.TemporaryDirectory() as root:
        cases = {}
        for number, (name, make) in enumerate(makers.items()):
            folder = Path(root) / str(number)
            folder.mkdir()
            cases[name] = make(folder)
        references = {
            name: Reference(ready.export, ready.asked(), NEW_TOKENS) for name, ready in cases.items()
        }
        for name in given.only or consumers():
            packages = importlib.import_module(f"{__package__}.{name}").PACKAGES
            print_table(name, measure(name, environment(name, packages), cases, references))


def print_table(name: str, rows: list[Any]) -> None:
    """One consumer's rows as a table of Markdown."""
    versions = next((row for row in rows if isinstance(row, dict)), {})
    stated = ", ".join(f"{package} {number}" for package, number in versions.items())
    lines = [f"\n{name} ({stated})\n", f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    lines += [f"| {' | '.join(row)} |" for row in rows if not isinstance(row, dict)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
