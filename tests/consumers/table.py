"""What was measured: rows, kept as JSON, and the tables that are printed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = Path("build") / "consumers" / "results"
TABLE = Path("build") / "consumers" / "table.md"
ROUNDING = 10
"""How many times as far from float64 as koffkit in float32 a consumer may be."""
MAX_KL = 1e-6
DETAILS = ("case", "setting", "condition", "equal", "max difference", "of float32", "KL", "")
SUMMARY = ("consumer", "setting", "cases", "equal", "of float32, at most", "KL, at most", "beyond the bounds")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A consumer in one setting and condition on one case.

    Attributes:
        case: the model; setting: of the consumer; condition: what is attached to the backbone.
        equal: greedy tokens that are those of koffkit; tokens: of how many; what: they are.
        max_abs: largest |difference| of a log-probability to float64; None: the consumer tells none.
        floor: the same for koffkit in float32, the largest of all conditions.
        kl: mean over steps, in nats.
        reason: why there is nothing to compare.
        versions: of the consumer's packages.
        bounded: the bounds are for this setting; else it is only measured.
        why: it misses them, if it does.
        failed: the consumer gave no answer: it is asked again by the next command.
    """

    case: str
    setting: str = ""
    condition: str = ""
    equal: int = 0
    tokens: int = 0
    what: str = "tokens"
    max_abs: float | None = None
    floor: float | None = None
    kl: float | None = None
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    bounded: bool = True
    why: str = ""
    failed: bool = False

    @property
    def ratio(self) -> float | None:
        """The difference in units of float32's."""
        return None if self.max_abs is None or not self.floor else self.max_abs / self.floor

    @property
    def beyond(self) -> str:
        """Which bounds it misses, in words; empty: none."""
        if self.reason or not self.bounded:
            return ""
        missed = []
        if self.equal < self.tokens:
            missed.append(f"{self.equal} of {self.tokens} {self.what}")
        if self.ratio is not None and self.ratio > ROUNDING:
            missed.append(f"{self.ratio:.0f} x float32")
        if self.kl is not None and self.kl > MAX_KL:
            missed.append(f"KL {self.kl:.0e}")
        return ", ".join(missed) + (f" ({self.why})" if missed and self.why else "")

    def cells(self) -> list[str]:
        """As a row of the table of one consumer."""
        if self.reason:
            return [self.case, self.setting, self.condition, "", "", "", "", self.reason]
        told = [
            "" if self.max_abs is None else f"{self.max_abs:.1e}",
            "" if self.ratio is None else f"{self.ratio:.1f} x {self.floor:.1e}",
            "" if self.kl is None else f"{self.kl:.0e}",
        ]
        counted = f"{self.equal} of {self.tokens}" + ("" if self.what == "tokens" else f" {self.what}")
        return [self.case, self.setting, self.condition, counted, *told, self.beyond and f"! {self.beyond}"]


def keep(name: str, rows: Iterable[Row]) -> None:
    """Keep a consumer's rows of one case, in place of those that there are."""
    new = list(rows)
    cases = {row.case for row in new}
    entries = [entry for entry in _entries(name) if entry["case"] not in cases]
    entries += [asdict(row) | {"program": _program(name)} for row in new]
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(entries, indent=1))
    unfinished.replace(path)


def kept(name: str, order: Sequence[str] = ()) -> list[Row]:
    """What was kept of a consumer.

    Args:
        name: of the consumer.
        order: of cases; others come last.
    """
    rows = [Row(**{key: entry[key] for key in entry if key != "program"}) for entry in _entries(name)]
    places = {case: place for place, case in enumerate(order)}
    return sorted(rows, key=lambda row: places.get(row.case, len(places)))


def due(name: str, case: str) -> bool:
    """Nothing is kept of a case, the consumer failed on it, or another version of its file asked."""
    entries = [entry for entry in _entries(name) if entry["case"] == case]
    program = _program(name)
    return not entries or any(entry["failed"] or entry["program"] != program for entry in entries)


def _entries(name: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{name}.json"
    entries: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return entries


def _program(name: str) -> str:
    """The digest of a consumer's file."""
    return hashlib.sha256((HERE / f"{name}.py").read_bytes()).hexdigest()


def details(name: str, rows: list[Row]) -> str:
    """One consumer's rows as a table of Markdown."""
    return f"\n{name} ({_versions(rows)})\n\n" + _markdown(DETAILS, (row.cells() for row in rows))


def summary(consumers: dict[str, list[Row]]) -> str:
    """One row for each setting of each consumer, and one for each reason why a case cannot be had there."""
    return _markdown(SUMMARY, (cells for name, rows in consumers.items() for cells in _summed(name, rows)))


def _summed(name: str, rows: list[Row]) -> Iterator[list[str]]:
    title = name + (f" ({_versions(rows)})" if _versions(rows) else "")
    measured = [row for row in rows if not row.reason]
    for setting in dict.fromkeys(row.setting for row in measured):
        own = [row for row in measured if row.setting == setting]
        ratios = [row.ratio for row in own if row.ratio is not None]
        kls = [row.kl for row in own if row.kl is not None]
        yield [
            title,
            setting,
            str(len({row.case for row in own})),
            f"{sum(row.equal == row.tokens for row in own)} of {len(own)}",
            f"{max(ratios):.1f}" if ratios else "",
            f"{max(kls):.0e}" if kls else "",
            "; ".join(f"{row.case}, {row.condition}: {row.beyond}" for row in own if row.beyond),
        ]
    reasons = dict.fromkeys(row.reason for row in rows if row.reason)
    for reason in reasons:
        cases = dict.fromkeys(row.case for row in rows if row.reason == reason)
        yield [title, "cannot", "; ".join(cases), "", "", "", reason]


def _versions(rows: list[Row]) -> str:
    versions = next((row.versions for row in rows if row.versions), {})
    return ", ".join(f"{package} {number}" for package, number in versions.items())


def _markdown(head: tuple[str, ...], rows: Iterable[list[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
