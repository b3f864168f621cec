"""Under an audit hook: commands on local files open no socket, run no code of a file, unpickle nothing and
start no process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..common import sentences
from ..conftest import Shipped

PROGRAM = """
import json, sys
report, roots, *commands = sys.argv[1:]
roots, events, present = tuple(json.loads(roots)), [], [None]
NAMES = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "pickle.find_class",
         "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")

def hook(event, details):
    if event in NAMES:
        events.append([present[0], event, repr(details)[:200]])
    elif event == "exec" and getattr(details[0], "co_filename", "").startswith(roots):
        events.append([present[0], event, details[0].co_filename])

sys.addaudithook(hook)
from koffkit.cli import main
for text in commands:
    present[0], code = text, 0
    try:
        main(json.loads(text))
    except SystemExit as end:
        code = end.code
    if code:
        sys.exit(f"{text}: {code}")
with open(report, "w") as file:
    json.dump(events, file)
"""


def audited(program: str, tmp_path: Path, commands: list[list[object]]) -> list[list[str]]:
    """The events of commands, all in a process of their own, and that they succeeded.

    Code counts as a file's if it lies in the folders of this session's tests.
    """
    report = tmp_path / "events.json"
    roots = json.dumps([str(tmp_path.parent)])
    ended = subprocess.run(
        [sys.executable, "-c", program, str(report), roots, *(json.dumps(c, default=str) for c in commands)],
        cwd=tmp_path,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    events: list[list[str]] = json.loads(report.read_text())
    return events


def test_nothing_but_files(shipped: Shipped, out: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(sentences(7, 20)))
    commands: list[list[object]] = [
        ["compress", shipped.recipe, "--output", tmp_path / "run"],
        ["export", tmp_path / "run", "--output", tmp_path / "again"],
        ["verify", out],
        ["verify", tmp_path / "run"],
        ["inspect", out],
        ["evaluate", out, "--data", text],
        ["generate", out, "--prompt", "river", "--memory", "auto", "--max-new-tokens", "2"],
        ["memory", "list", out],
        ["memory", "compact", out],
        ["memory", "remove", out, "south"],
    ]
    assert audited(PROGRAM, tmp_path, commands) == []


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("import socket; socket.getaddrinfo('localhost', 1)", "socket.getaddrinfo"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import pickle, datetime; pickle.loads(pickle.dumps(datetime.date(1, 1, 1)))", "pickle.find_class"),
    ],
)
def test_what_must_not_be_would_be_seen(code: str, event: str, tmp_path: Path) -> None:
    (tmp_path / "of_a_file.py").write_text(f"{code}\n")
    program = PROGRAM.replace("from koffkit.cli import main", "import of_a_file; main = print")
    assert [name for _, name, _ in audited(program, tmp_path, [])][:2] == ["exec", event]
