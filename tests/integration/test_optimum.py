from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ..conftest import Shipped


def test_optimum_cli_finds_the_exporter(shipped: Shipped, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("optimum-cli")),
        "export",
        "koffkit",
        str(shipped.run),
        "--output",
        str(tmp_path / "out"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(tmp_path / "out")
    assert (tmp_path / "out" / "koffkit.json").is_file()
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr
