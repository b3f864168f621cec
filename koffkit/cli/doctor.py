"""`koffkit doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from ..errors import ResourceError
from .checks import TRACKERS
from .console import emit, json_option, say

ENOUGH_DISK = 2 << 30
"""Free bytes below which not even the quickstart's runs and exports have room for long."""


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Say what this machine has that koffkit needs or can use: versions, devices, extras, disk, hub cache.
    Exit code 5 when something that is needed is not there."""
    report = _host()
    if not as_json:
        _print(report)
    devices = _devices()  # imports torch, which takes seconds
    problems = [*_problems(report), *devices.pop("problems")]
    report |= devices | {"problems": problems, "ok": not problems}
    if as_json:
        emit(report)
    else:
        say(f"devices      {'; '.join(map(_device_line, report['devices'])) or 'none'}")
        for problem in problems:
            say(f"Error: {problem}", err=True)
        if not problems:
            say("Nothing is missing.")
    if problems:
        sys.exit(ResourceError.exit_code)


def _host() -> dict[str, Any]:
    """All that is known without importing torch."""
    needed, extras = _requirements()
    return {
        "koffkit": metadata.version("koffkit"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": _cores(),
        "memory": _memory(),
        "packages": needed,
        "extras": extras,
        "trackers": [name for name, package in TRACKERS.items() if _version(package) is not None],
        "disk": {name: _disk(place) for name, place in _places().items()},
        "hub": _hub(),
    }


def _requirements() -> tuple[dict[str, Any], dict[str, Any]]:
    """What koffkit needs, and the packages of its extras, by name: `version` (None: not installed), `needed`
    (the range) and `ok`."""
    from packaging.requirements import Requirement

    needed: dict[str, Any] = {}
    extras: dict[str, Any] = {
        name: {} for name in metadata.metadata("koffkit").get_all("Provides-Extra") or [] if name != "dev"
    }
    for text in metadata.requires("koffkit") or []:
        requirement = Requirement(text)
        version = _version(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        entry = {"version": version, "needed": str(requirement.specifier), "ok": fits}
        if requirement.marker is None or "extra" not in str(requirement.marker):
            needed[requirement.name] = entry
            continue
        for name, packages in extras.items():
            if requirement.marker.evaluate({"extra": name}):
                packages[requirement.name] = entry
    return needed, extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> dict[str, int | None]:
    """Bytes of main memory: all of it, and what is free for a new process where the system says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = None
    if Path("/proc/meminfo").is_file():
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    return {"total": total, "free": free}


def _places() -> dict[str, Path]:
    import tempfile

    return {"here": Path.cwd(), "temporary": Path(tempfile.gettempdir()), "hub": _cache()}


def _cache() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _disk(place: Path) -> dict[str, Any]:
    """Free bytes where a folder is or will be, and whether it can be written to."""
    folder = next(parent for parent in (place, *place.absolute().parents) if parent.is_dir())
    return {
        "path": str(place),
        "free": shutil.disk_usage(folder).free,
        "writable": os.access(folder, os.W_OK),
    }


def _hub() -> dict[str, Any]:
    cache = _cache()
    blobs = [path for path in cache.glob("*/blobs/*") if path.is_file()] if cache.is_dir() else []
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return {
        "cache": str(cache),
        "models": len(list(cache.glob("models--*"))) if cache.is_dir() else 0,
        "bytes": sum(path.stat().st_size for path in blobs),
        "offline": offline,
    }


def _devices() -> dict[str, Any]:
    """The accelerators that torch sees, after the CPU."""
    try:
        import torch
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return {"devices": [], "problems": [f"torch does not load ({reason}); install it again."]}
    devices: list[dict[str, Any]] = [{"name": "cpu", "threads": torch.get_num_threads()}]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        for index in range(torch.accelerator.device_count()):
            devices.append({"name": f"{accelerator.type}:{index}", **_properties(accelerator.type, index)})
    return {"devices": devices, "torch_build": torch.__version__, "cuda": torch.version.cuda, "problems": []}


def _properties(kind: str, index: int) -> dict[str, Any]:
    import torch

    ask = getattr(getattr(torch, kind, None), "get_device_properties", None)
    if ask is None:
        return {}
    properties = ask(index)
    return {"model": properties.name, "memory": properties.total_memory}


def _problems(report: dict[str, Any]) -> Iterator[str]:
    for name, entry in report["packages"].items():
        if not entry["ok"]:
            has = "is not installed" if entry["version"] is None else f"is {entry['version']}"
            wanted = f"{name}{entry['needed']}"
            yield f"{name} {has}, koffkit needs {wanted}; pip install '{wanted}'."
    for name, disk in report["disk"].items():
        if not disk["writable"] and name != "here":
            yield f"{disk['path']}: cannot be written to; change its permissions, or choose another place."
        if disk["free"] < ENOUGH_DISK and name == "here":
            yield f"{disk['path']}: {disk['free']:,} bytes free, a run needs {ENOUGH_DISK:,}; free some."


def _print(report: dict[str, Any]) -> None:
    memory, hub = report["memory"], report["hub"]
    free = "" if memory["free"] is None else f" ({memory['free']:,} free)"
    say(f"koffkit      {report['koffkit']}, Python {report['python']} ({report['executable']})")
    say(f"system       {report['platform']}, {report['cores']} cores")
    say(f"memory       {memory['total']:,} bytes{free}")
    packages = (f"{name} {entry['version'] or 'missing'}" for name, entry in report["packages"].items())
    say(f"packages     {', '.join(packages)}")
    for name, contents in report["extras"].items():
        lacking = [package for package, entry in contents.items() if not entry["ok"]]
        say(f"extra {name:6} {'installed' if not lacking else 'missing: ' + ', '.join(lacking)}")
    say(f"trackers     {', '.join(report['trackers']) or 'none'}")
    for disk in report["disk"].values():
        closed = "" if disk["writable"] else ", read-only"
        say(f"disk         {disk['path']}: {disk['free']:,} bytes free{closed}")
    say(
        f"hub cache    {hub['cache']}: {hub['models']} models, {hub['bytes']:,} bytes"
        f"{', offline' if hub['offline'] else ''}"
    )


def _device_line(device: dict[str, Any]) -> str:
    if "threads" in device:
        return f"cpu ({device['threads']} threads)"
    memory = f", {device['memory']:,} bytes" if "memory" in device else ""
    return f"{device['name']} ({device.get('model', 'unknown')}{memory})"
