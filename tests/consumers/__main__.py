"""Run every consumer on every case and print one table."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koffkit.exporters import export

from koffkit.errors import KoffkitError

from .cases import CASES, Ready, real
from .environments import ROOT, With, environment
from .likelihoods import Likelihoods
from .reference import Compared, Reference
from .table import Row, details, keep, kept, summary

HERE = Path(__file__).parent
NOT_CONSUMERS = (
    "__init__",
    "__main__",
    "cases",
    "conftest",
    "environments",
    "http_server",
    "likelihoods",
    "program",
    "reference",
    "table",
)
SECONDS = 3600
REFERENCES: dict[str, Callable[[Path, Any], Any]] = {
    "tokens": Reference,
    "text": lambda export, asked: Reference(export, asked, suppressing=False),
    "likelihoods": Likelihoods,
}


@dataclass
class Case:
    """A run, and what is made of it once for all consumers.

    Attributes:
        name: in the table.
        ready: the run.
        place: an empty folder.
    """

    name: str
    ready: Ready
    place: Path
    references: dict[str, Any] = field(default_factory=dict)
    exports: dict[str, Path | KoffkitError] = field(default_factory=dict)

    def reference(self, kind: str) -> Any:
        """What is right, by the kind of answers."""
        if kind not in self.references:
            self.references[kind] = REFERENCES[kind](self.ready.export, self.ready.asked())
        return self.references[kind]

    def export(self, format_name: str, options: dict[str, Any], python: Path | None) -> Path:
        """The export of a format.

        Args:
            format_name, options: as on the command line.
            python: with the extra that the format needs; None: this one.

        Raises:
            KoffkitError: the format refuses this run.
        """
        if format_name == "hf" and not options:
            return self.ready.export
        key = f"{format_name} {options}"
        if key not in self.exports:
            target = self.place / f"export-{len(self.exports)}"
            try:
                if python is None:
                    export(self.ready.run, target, format_name, options)
                else:
                    _export_with(python, self.ready.run, target, format_name, options)
                self.exports[key] = target
            except KoffkitError as error:
                self.exports[key] = error
        made = self.exports[key]
        if isinstance(made, KoffkitError):
            raise made
        return made

    def merged(self, consumer: Any) -> str | None:
        """The export with the first memory in its weights, for a consumer that wants one, too."""
        domains = [asked["memory"] for asked in self.ready.asked() if asked["memory"]]
        if not getattr(consumer, "MERGED", False) or not domains:
            return None
        return str(self.export(consumer.FORMAT, consumer.OPTIONS | {"merge": domains[0]}, None))


@dataclass(frozen=True)
class Job:
    """What a consumer is asked about one case."""

    case: Case
    reference: Any
    artefact: Path
    questions: dict[str, Any]


def _export_with(python: Path, run: Path, target: Path, name: str, options: dict[str, Any]) -> None:
    """`koffkit export` in another environment."""
    more = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    command = [python, "-m", "koffkit", "export", run, "--format", name, "--output", target, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KoffkitError(" ".join(done.stderr.split()).rpartition("Error: ")[2])


def consumers() -> list[str]:
    """The names of all consumers: the other files of this folder."""
    names = (path.stem for path in sorted(HERE.glob("*.py")))
    return [name for name in names if name not in NOT_CONSUMERS and not name.startswith("test_")]


def module_of(name: str) -> Any:
    """A consumer's file."""
    return importlib.import_module(f"{__package__}.{name}")


def ask(python: Path, name: str, jobs: list[Job], place: Path) -> Iterator[dict[str, Any]]:
    """A consumer's answers about exports; `failed` where there are none."""
    paths = [(place / f"{number}-questions", place / f"{number}-answers") for number in range(len(jobs))]
    words: list[str | Path] = []
    for job, (asked, answers) in zip(jobs, paths, strict=True):
        answers.mkdir()
        asked.write_text(json.dumps(job.questions))
        words += [job.artefact, asked, answers / "answers.json"]
    command = [python, HERE / f"{name}.py", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=SECONDS * len(jobs))
        lines = (done.stderr or done.stdout).strip().splitlines()
        last = lines[-1] if lines else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        last = f"no answer in {SECONDS} seconds"
    for _, answers in paths:
        file = answers / "answers.json"
        yield json.loads(file.read_text()) if file.is_file() else {"failed": last}


def rows_of(case: Case, reference: Any, answers: dict[str, Any], consumer: Any = None) -> Iterator[Row]:
    """The worst of each condition in each setting. Settings of the consumer that are `UNBOUNDED` are only
    measured; `WHY` says, by setting, why one misses the bounds with a whole memory."""
    unbounded, why = getattr(consumer, "UNBOUNDED", ()), getattr(consumer, "WHY", {})
    for setting, given in answers["settings"].items():
        worst: dict[str, Compared] = {}
        for asked, found in zip(reference.asked, reference.compare(given), strict=True):
            if found is None:
                continue
            halves = [half for half in ("lora", "kv", "neurons") if asked[half]]
            condition = " + ".join(halves) or "backbone"
            before = worst.get(condition)
            if before is None or _badness(found) > _badness(before):
                worst[condition] = found
        for condition, found in worst.items():
            yield Row(
                case=case.name,
                setting=setting,
                condition=condition,
                equal=found.equal,
                tokens=found.tokens,
                what=reference.what,
                max_abs=found.max_abs,
                floor=reference.floor,
                kl=found.kl,
                reason=_without_places(found.reason),
                versions=answers["versions"],
                bounded=setting not in unbounded,
                why=why.get(setting, "") if "kv" in condition else "",
            )


def _without_places(reason: str) -> str:
    """Without the folders of this run of the table."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^\s/]+/", "", reason)


def _badness(found: Compared) -> tuple[int, float]:
    return found.tokens - found.equal, found.max_abs or 0.0


def measure(name: str, python: Path, exporter: Path | None, cases: list[Case]) -> Iterator[Row]:
    """The rows of one consumer."""
    consumer, jobs = module_of(name), []
    for case in cases:
        try:
            artefact = case.export(consumer.FORMAT, consumer.OPTIONS, exporter)
            merged = case.merged(consumer)
        except KoffkitError as error:
            yield Row(case=case.name, reason=_without_places(str(error)))
            continue
        reference = case.reference(getattr(consumer, "ANSWERS", "tokens"))
        jobs.append(Job(case, reference, artefact, reference.questions() | {"merged": merged}))
    groups = [[job] for job in jobs] if getattr(consumer, "APART", False) else [jobs]
    for group in groups:
        with tempfile.TemporaryDirectory() as place:
            for job, answers in zip(group, ask(python, name, group, Path(place)), strict=True):
                if "failed" in answers:
                    yield Row(case=job.case.name, reason=_without_places(answers["failed"]))
                else:
                    yield from rows_of(job.case, job.reference, answers, consumer)


def run(name: str, cases: list[Case], constraints: Path, torch_index: str | None) -> None:
    """Measure one consumer, keep and print its rows."""
    consumer = module_of(name)
    if not hasattr(consumer, "PACKAGES"):
        rows = [Row(case="all", reason=consumer.REASON)]
    else:
        try:
            python = environment(name, consumer, constraints, torch_index)
            extra, exporter = getattr(consumer, "EXTRA", None), None
            if extra is not None:  # what the export needs beside koffkit
                exporter = environment(f"export_{extra}", With(extra), constraints, torch_index)
        except subprocess.CalledProcessError as error:
            rows = [Row(case="all", reason=f"pip ended with code {error.returncode}")]
        else:
            rows = list(measure(name, python, exporter, cases))
    keep(name, rows)
    sys.stdout.write(details(name, rows))
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.consumers", description=__doc__)
    parser.add_argument("--only", choices=consumers(), action="append", help="a consumer; may be given again")
    parser.add_argument("--case", choices=list(CASES), action="append", help="a case; may be given again")
    parser.add_argument("--real", type=Path, help="a real model, or a run of one: one more case")
    parser.add_argument("--kept", action="store_true", help="only print what was measured before")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints-cpu.txt")
    parser.add_argument("--torch-index", help="the package index for torch")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    sys.path.append(str(HERE))  # a consumer imports another as the program does
    wanted = given.only or consumers()
    if not given.kept:
        makers = {name: CASES[name] for name in given.case or ([] if given.real else CASES)}
        makers |= {} if given.real is None else {"real": real(given.real)}
        with tempfile.TemporaryDirectory() as root:
            cases = []
            for number, (name, make) in enumerate(makers.items()):
                folder = Path(root) / str(number)
                folder.mkdir()
                cases.append(Case(name, make(folder), folder))
            for name in wanted:
                run(name, cases, given.constraints, given.torch_index)
    sys.stdout.write("\n" + summary({name: kept(name) for name in wanted}))


if __name__ == "__main__":
    main()
