"""A package from outside the tree: the one on the page of plug-ins, installed as pip would install it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).parents[1]
PAGE = TREE / "docs" / "plugins.md"
_FILE = re.compile(r"^<!-- file (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files_of_page() -> dict[str, str]:
    """The files that stand on the page, by name."""
    return dict(_FILE.findall(PAGE.read_text(encoding="utf-8")))


def install(site: Path, *kinds: str) -> Path:
    """Make `site` a folder of the import path in which the page's package is installed.

    Args:
        kinds: which of its files, for example `stage`; none: all.

    Returns:
        `site`.
    """
    files = files_of_page()
    modules = [f"extra_{kind}" for kind in kinds] or [
        name.removesuffix(".py") for name in files if name.endswith(".py")
    ]
    info = site / "koffkit_extra-1.0.dist-info"
    info.mkdir(parents=True)
    for module in modules:
        (site / f"{module}.py").write_text(files[f"{module}.py"], encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: koffkit-extra\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(_entry_points(files["pyproject.toml"], modules))
    return site


def _entry_points(project: str, modules: list[str]) -> str:
    """Those of a pyproject.toml that lead to some modules, in the form of installed packages."""
    lines: list[str] = []
    for line in project.splitlines():
        group = re.fullmatch(r'\[project\.entry-points\."(.+)"\]', line)
        point = re.fullmatch(r'(\w+) = "(\w+):(\w+)"', line)
        if group:
            lines.append(f"[{group[1]}]")
        elif point and point[2] in modules:
            lines.append(f"{point[1]} = {point[2]}:{point[3]}")
    return "\n".join(lines) + "\n"


def run_python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter in the tree's root with what is installed in `site`."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=TREE, env=environment, capture_output=True, text=True
    )
