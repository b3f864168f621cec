"""One consumer, asked about one case: its export, its answers, and the rows that come of them. Not a
consumer."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from koffkit.exporters import export

from koffkit.errors import KoffkitError

from .cases import Ready
from .likelihoods import Likelihoods
from .reference import Compared, Reference
from .table import Row

HERE = Path(__file__).parent
SECONDS = 3600
REFERENCES: dict[str, Callable[[Path, Any], Any]] = {
    "tokens": Reference,
    "text": lambda export, asked: Reference(export, asked, suppressing=False),
    "likelihoods": Likelihoods,
}


@dataclass
class Case:
    """A run, made when it is first needed, and what is made of it once for all consumers.

    Attributes:
        name: in the table.
        make: the run.
        place: an empty folder.
    """

    name: str
    make: Callable[[Path], Ready]
    place: Path
    references: dict[str, Any] = field(default_factory=dict)
    exports: dict[str, Path | KoffkitError] = field(default_factory=dict)

    @cached_property
    def ready(self) -> Ready:
        """The run."""
        return self.make(self.place)

    def reference(self, kind: str) -> Any:
        """What is right, by the kind of answers."""
        if kind not in self.references:
            self.references[kind] = REFERENCES[kind](self.ready.export, self.ready.asked())
        return self.references[kind]

    def artefact(self, consumer: Any, python: Path | None) -> Path:
        """The export that a consumer reads, made with `python`; `OTHERWISE`: its options where the first
        ones are refused.

        Raises:
            KoffkitError: the format refuses this run.
        """
        try:
            return self.export(consumer.FORMAT, consumer.OPTIONS, python)
        except KoffkitError:
            if not hasattr(consumer, "OTHERWISE"):
                raise
            return self.export(consumer.FORMAT, consumer.OTHERWISE, python)

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


def _export_with(python: Path, run: Path, target: Path, name: str, options: dict[str, Any]) -> None:
    """`koffkit export` in another environment."""
    more = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    command = [python, "-m", "koffkit", "export", run, "--format", name, "--output", target, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KoffkitError(" ".join(done.stderr.split()).rpartition("Error: ")[2])


def module_of(name: str) -> Any:
    """A consumer's file."""
    return importlib.import_module(f"{__package__}.{name}")


def ask(python: Path, name: str, artefact: Path, questions: dict[str, Any], place: Path) -> dict[str, Any]:
    """A consumer's answers about an export; `failed` where there are none."""
    asked, answers = place / "questions.json", place / "answers.json"
    asked.write_text(json.dumps(questions))
    command = [python, HERE / f"{name}.py", artefact, asked, answers]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=SECONDS)
        lines = (done.stderr or done.stdout).strip().splitlines()
        last = lines[-1] if lines else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        last = f"no answer in {SECONDS} seconds"
    found: dict[str, Any] = json.loads(answers.read_text()) if answers.is_file() else {"failed": last}
    return found


def measure(name: str, python: Path, exporter: Path | None, case: Case) -> Iterator[Row]:
    """The rows of a consumer and a case."""
    consumer = module_of(name)
    try:
        artefact = case.artefact(consumer, exporter)
        merged = case.merged(consumer)
    except KoffkitError as error:
        yield Row(case=case.name, reason=_without_places(str(error)))
        return
    except Exception as error:  # a fault of ours belongs into the table, beside all the rest
        yield Row(case=case.name, reason=_without_places(f"{type(error).__name__}: {error}"), failed=True)
        return
    reference = case.reference(getattr(consumer, "ANSWERS", "tokens"))
    with tempfile.TemporaryDirectory() as place:
        answers = ask(python, name, artefact, reference.questions() | {"merged": merged}, Path(place))
    if "failed" in answers:
        yield Row(case=case.name, reason=_without_places(answers["failed"]), failed=True)
    else:
        yield from rows_of(case.name, reference, answers, consumer)


def rows_of(case: str, reference: Any, answers: dict[str, Any], consumer: Any = None) -> Iterator[Row]:
    """The worst of each condition in each setting. Settings of the consumer that are `UNBOUNDED` are only
    measured; `WHY` says, by setting and condition, why one misses the bounds."""
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
                case=case,
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
                why=why.get((setting, condition), ""),
            )


def _without_places(reason: str) -> str:
    """Without the folders of this run of the table."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^\s/]+/", "", reason)


def _badness(found: Compared) -> tuple[int, float]:
    return found.tokens - found.equal, found.max_abs or 0.0
