"""`koffkit serve` under load: many concurrent streams on all memories of an export, for some minutes.

Every answer is greedy and is compared with the one that the same request got alone before; the memory that
the server takes is read from /proc every second (Linux).

python benchmarks/serve_load.py EXPORT                           # 32 streams for a minute
python benchmarks/serve_load.py EXPORT --streams 64 --minutes 30 --max-rss-growth 0.05
python benchmarks/serve_load.py EXPORT --minutes 10 --hostile    # also malformed, oversized, slow and
                                                                 # vanishing clients; one memory replaced
python benchmarks/serve_load.py EXPORT --dtype bfloat16          # where the other rows of a batch decide
                                                                 # which of two near tokens comes: no fault

The streams are those of OpenAI's own client (`openai`, in the extra `dev`), without retries; hostile clients
speak raw HTTP.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError
from rich.console import Console
from rich.table import Table
from serve_hostile import Hostile

PROMPTS = (
    "",
    "The ",
    "Once there was a river, and over it",
    "One two three four five six seven eight nine ten",
)
WARM = 0.25
"""The share of the time after which the memory of the server should grow no more."""


@dataclass
class Seen:
    """What came back."""

    by_memory: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    different: int = 0
    rss: list[tuple[float, int]] = field(default_factory=list)
    hostile: Counter[str] = field(default_factory=Counter)


def client_of(url: str, streams: int) -> AsyncOpenAI:
    """A client that may have so many streams open and tries nothing twice."""
    limits = httpx.Limits(max_connections=streams + 2)
    http = DefaultAsyncHttpxClient(limits=limits, trust_env=False)
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600, http_client=http)


async def stream(client: AsyncOpenAI, model: str, prompt: str, max_tokens: int) -> tuple[str, float, int]:
    """The text of an answer, the seconds until its first token, and its tokens."""
    began, first, text, tokens = time.perf_counter(), 0.0, "", None
    events = await client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for event in events:
        first = first or time.perf_counter() - began
        text += "".join(choice.text for choice in event.choices)
        tokens = event.usage.completion_tokens if event.usage else tokens
    if tokens is None:  # usage is what comes last
        raise RuntimeError("the stream broke off")
    return text, first, tokens


async def load(
    url: str, pid: int, streams: int, seconds: float, max_tokens: int, replaced: Path | None
) -> Seen:
    """Keep `streams` streams open for some time.

    Args:
        replaced: the export, a copy, whose last memory becomes its first and itself again all the time, and
            all other hostile clients come; None: nothing of that.
    """
    seen = Seen()
    async with client_of(url, streams) as client:
        names = [entry.id async for entry in client.models.list()]
        jobs = [(name, prompt) for name in names if name != "auto" for prompt in PROMPTS]
        alone = {job: {(await stream(client, *job, max_tokens))[0]} for job in jobs}
        end = time.perf_counter() + seconds
        others = []
        if replaced is not None:
            first, *_, last = [name for name in names if name not in ("auto", "none")]
            for prompt in PROMPTS:
                alone[last, prompt] |= alone[first, prompt]
            sources = [replaced.with_name(name) for name in (first, last)]
            for source in sources:
                shutil.copytree(replaced / "memories" / source.name, source)
            hostile = Hostile(url, replaced, last, sources, end)
            seen.hostile = hostile.seen
            others.append(hostile.run())

        async def keep_asking(place: int) -> None:
            while time.perf_counter() < end:
                job = jobs[place % len(jobs)]
                place += streams + 1
                began = time.perf_counter()
                try:
                    text, first, tokens = await stream(client, *job, max_tokens)
                except (RuntimeError, OpenAIError, httpx.HTTPError) as error:
                    seen.failed.append(str(error) or type(error).__name__)
                    continue
                seen.by_memory[job[0]] += 1
                seen.tokens += tokens
                seen.first.append(first)
                seen.whole.append(time.perf_counter() - began)
                seen.different += text not in alone[job]

        async def watch() -> None:
            while time.perf_counter() < end:
                seen.rss.append((1 - (end - time.perf_counter()) / seconds, rss(pid)))
                await asyncio.sleep(1)

        await asyncio.gather(watch(), *others, *(keep_asking(place) for place in range(streams)))
    return seen


def rss(pid: int) -> int:
    """Bytes of memory that a process holds."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def table(seen: Seen, seconds: float, streams: int) -> Table:
    """The figures."""
    made = Table("", "", title=f"{streams} streams for {seconds / 60:g} minutes")
    cuts = [statistics.quantiles(values, n=20) for values in (seen.first, seen.whole)]
    warm = [size for share, size in seen.rss if share > WARM]
    rows: dict[str, Any] = {
        "answers": f"{len(seen.whole):,}",
        "by memory": ", ".join(f"{name} {count}" for name, count in sorted(seen.by_memory.items())),
        "lost or failed": f"{len(seen.failed)} {Counter(seen.failed).most_common(1) or ''}",
        "not the text of the same request alone": f"{seen.different}",
        "tokens a second": f"{seen.tokens / seconds:,.1f}",
        "seconds to the first token (median, 95 %)": f"{cuts[0][9]:.3f}, {cuts[0][18]:.3f}",
        "seconds to the whole answer (median, 95 %)": f"{cuts[1][9]:.3f}, {cuts[1][18]:.3f}",
        "RSS in MB, ten times": ", ".join(
            f"{size / 1e6:,.0f}" for _, size in seen.rss[:: max(1, len(seen.rss) // 9)]
        ),
        "hostile clients": ", ".join(f"{what} {count}" for what, count in sorted(seen.hostile.items())),
        "RSS in MB at the start, warm, at the end, at most": ", ".join(
            f"{size / 1e6:,.1f}"
            for size in (seen.rss[0][1], warm[0], warm[-1], max(size for _, size in seen.rss))
        ),
    }
    for name, value in rows.items():
        made.add_row(name, str(value))
    return made


@click.command(help=__doc__)
@click.argument("export", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--streams", default=32, show_default=True)
@click.option("--minutes", default=1.0, show_default=True)
@click.option("--max-tokens", default=32, show_default=True)
@click.option("--max-batch", default=16, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--max-rss-growth", type=float, help="Fail if RSS grows by a larger share once it is warm.")
@click.option("--hostile", is_flag=True, help="With clients that nobody wants; the export is copied.")
def main(
    export: Path,
    streams: int,
    minutes: float,
    max_tokens: int,
    max_batch: int,
    dtype: str,
    max_rss_growth: float | None,
    hostile: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        served = shutil.copytree(export, Path(folder) / "out") if hostile else export
        server = ["--max-batch", str(max_batch), "--max-queue", str(streams + 8), "--dtype", dtype]
        seen, code = run(served, streams, minutes * 60, max_tokens, server, hostile=hostile)
    Console(width=120).print(table(seen, minutes * 60, streams))
    warm = [size for share, size in seen.rss if share > WARM]
    grown = max(warm) / warm[0] - 1
    different = seen.different if dtype == "float32" else 0
    if seen.failed or different or code or (max_rss_growth is not None and grown > max_rss_growth):
        failed = f"{len(seen.failed)} answers lost, {different} different"
        raise SystemExit(f"failed: {failed}, exit code {code}, RSS grew by {grown:.1%}")


def run(
    export: Path, streams: int, seconds: float, max_tokens: int, options: list[str], *, hostile: bool
) -> tuple[Seen, int]:
    """What was seen of a server with these options, and how it ended."""
    command = [sys.executable, "-m", "koffkit", "serve", str(export), "--port", "0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        address = next(line for line in server.stderr if " at http" in line).rpartition(" at ")[2].strip()
        # what it says from now on must not fill the pipe
        threading.Thread(target=server.stderr.read, daemon=True).start()
        replaced = export if hostile else None
        seen = asyncio.run(load(address, server.pid, streams, seconds, max_tokens, replaced))
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait()
    return seen, code


if __name__ == "__main__":
    main()
