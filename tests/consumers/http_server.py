"""A server of another program: started, waited for, ended. Not a consumer; several import it."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PORTS = 20_000, 32_768
SECONDS = 300
"""Until it must answer."""


def free_port() -> int:
    """A port that nobody uses now, and below those that systems hand out by themselves: another server must
    not get it, and answer in the place of one that takes a minute to start."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as bound, suppress(OSError):
            bound.bind(("127.0.0.1", port))
            return port


def tool(name: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).with_name(name))


@contextmanager
def serving(
    command: Sequence[str], port: int, folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A server until the block ends; its address.

    Args:
        command: that serves on `port` and answers `/health`.
        folder: where it runs.
        log: a file for what it says.
        environment: variables beside this program's.

    Raises:
        RuntimeError: it ended, with its last words, or does not answer.
    """
    url = f"http://127.0.0.1:{port}"
    with open(log, "w") as said:
        server = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **(environment or {})}, stdout=said, stderr=said
        )
        try:
            _wait(server, url)
            yield url
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {last_error(log)}") from None
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def last_error(log: Path) -> str:
    """The last line that names an error; else the last one."""
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["no word"])[-1]


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(2 * SECONDS):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not answer in {SECONDS} seconds")
