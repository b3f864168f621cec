"""The commands under torture, on a tiny model: what each starts from, and what must hold after a fault."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..common import make_checkpoint, recipe_dict, sentences, write_recipe
from .faults import Faults

# What differs from one run to the next: clocks and measured speeds.
CLOCKS = {
    "created",
    "seal",  # of a record that holds a clock
    "metrics.jsonl",  # its entry among the files of a run
    "started",
    "finished",
    "milliseconds",
    "seconds",
    "tokens_per_second",
    "peak_memory",
    "wall_time",
}
LEARNED = ("--set", "stages.recover.max_steps=3", "--set", "train.checkpoint_every=2")
LITTER = ("partial", "koffkit-", ".new", "checkpoints")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: its exit code; a signal is negative.
        err: what it wrote to stderr.
        seconds: of the processor.
        peak: the most memory that it had, in bytes; what the parent had counts.
    """

    code: int
    err: str
    seconds: float = 0.0
    peak: int = 0


def koffkit(arguments: list[str], folder: Path, faults: Faults | None = None) -> tuple[Ended, list[Any]]:
    """The command line in a forked child, in `folder`; also the operations that were seen."""
    return start(arguments, folder, faults).wait()


@dataclass(frozen=True)
class Running:
    """A command in a forked child, and the files that it writes its stderr and its operations to."""

    child: int
    err: IO[bytes]
    seen: IO[bytes]

    def wait(self, patience: float | None = None) -> tuple[Ended, list[Any]]:
        """How it ended, and the operations that were seen.

        Args:
            patience: seconds after which it is killed; None: never.
        """
        killer = threading.Timer(patience or 0.0, os.kill, (self.child, signal.SIGKILL))
        if patience is not None:
            killer.start()
        _, status, usage = os.wait4(self.child, 0)
        killer.cancel()
        with self.err, self.seen:
            self.err.seek(0)
            text = self.seen.read()
            ended = Ended(
                os.waitstatus_to_exitcode(status),
                self.err.read().decode(errors="replace"),
                usage.ru_utime + usage.ru_stime,
                usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            )
        return ended, json.loads(text) if text else []


def start(
    arguments: list[str], folder: Path, faults: Faults | None = None, *, at: float | None = None
) -> Running:
    """Start the command line in a forked child, in `folder`.

    Args:
        arguments: those after `koffkit`.
        folder: its working folder.
        faults: what to count and to break; None: nothing.
        at: when to begin, by the monotonic clock; None: at once.
    """
    err, seen = tempfile.TemporaryFile("w+b"), tempfile.NamedTemporaryFile("w+b")  # noqa: SIM115
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        if at is not None:
            time.sleep(max(0.0, at - time.monotonic()))
        _be_the_command(arguments, folder, faults, err.fileno(), seen.name)
    return Running(child, err, seen)


def _be_the_command(arguments: list[str], folder: Path, faults: Faults | None, err: int, seen: str) -> None:
    code = 1
    try:
        os.dup2(err, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), write_through=True)
        os.chdir(folder)
        from koffkit.cli import main

        if faults is not None:
            faults.install()
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        except BaseException:
            traceback.print_exc()
        if faults is not None:
            Path(seen).write_text(json.dumps(faults.seen))
    finally:
        os._exit(code)


class World:
    """A checkpoint, its recipe, a finished run and an export, made once; every trial works on a copy."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.fresh = self.root / "fresh"
        self.fresh.mkdir(parents=True)
        base = make_checkpoint(self.root / "base")
        rates = {"lora": 2e-2, "kv": 5e-2, "gates": 0.3}
        stages: list[dict[str, Any]] = [
            {name: {"max_steps": steps, "batch_size": 2, "lr": rates}}
            for name, steps in {"learn_masks": 4, "recover": 3}.items()
        ]
        stages += [{"route": {"num_buckets": 256, "epochs": 1}}, {"evaluate": {"max_tokens": 32}}]
        recipe = recipe_dict(base, self.root / "data", stages=stages, train={"checkpoint_every": 2})
        write_recipe(self.root / "recipe.yaml", recipe)
        (self.root / "east.txt").write_text("\n\n".join(sentences(7, 80)) + "\n")
        for arguments in (["compress", str(self.root / "recipe.yaml")], ["export", "--output", "out"]):
            ended, _ = koffkit(arguments, self.fresh)
            if ended.code:
                raise RuntimeError(ended.err)
        for name in ("east", "west"):
            learn = ["memory", "add", "out", name, "--text", str(self.root / "east.txt"), *LEARNED]
            ended, _ = koffkit([*learn, "--output", "new"], self.fresh)
            if ended.code:
                raise RuntimeError(ended.err)
        self.commands = {command.name: command for command in self._commands()}

    def _commands(self) -> list[Command]:
        run = ["compress", str(self.root / "recipe.yaml"), "--output", "run"]
        add = ["memory", "add", "out", "east", "--text", str(self.root / "east.txt"), *LEARNED]
        return [
            Command("compress", run, [*run, "--resume"], None, ("run",)),
            Command("export", ["export", "runs/tiny", "--output", "made"], None, "made", ("made",)),
            Command("add", add, [*add, "--resume"], "out/memories/east", ("out", "runs")),
            Command("collect", ["memory", "collect", "out", "new"], None, "out", ("out", "new")),
            Command("remove", ["memory", "remove", "out", "north"], None, "out/memories/north", ("out",)),
            Command(
                "compact",
                ["memory", "compact", "out", "--rank", "1", "--in-place"],
                None,
                None,
                ("out",),
            ),
        ]

    def copy(self, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(self.fresh, folder))


@dataclass(frozen=True)
class Command:
    """One command line, and the same again after it was broken off.

    Args:
        published: what appears or goes as a whole.
        results: the folders it works on.
    """

    name: str
    arguments: list[str]
    resume: list[str] | None
    published: str | None
    results: tuple[str, ...]

    @property
    def again(self) -> list[str]:
        return self.resume or self.arguments


def content(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """What a command made: every file by its digest, JSON by its values without clocks."""
    files = [path for name in names for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): _value(path) for path in files}


def _value(path: Path) -> Any:
    if path.suffix == ".json" and path.name != "tokenizer.json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(item) for key, item in value.items() if key not in CLOCKS}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def litter(folder: Path) -> list[str]:
    """Names that no finished command leaves behind."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if any(mark in path.name for mark in LITTER) and path.name != "koffkit.json"
    ]
