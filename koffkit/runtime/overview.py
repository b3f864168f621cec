"""What `koffkit inspect` says in ten lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..artefact.card import readable_bytes
from ..artefact.public import public_name
from ..report.duration import duration
from ..report.memories import layer_range

NAMES = 8
"""Names that a line lists; of more it says how many."""
Found = Mapping[str, Any]


def overview(found: Found) -> list[str]:
    """At most nine lines about what `koffkit.runtime.inspect.describe` tells, each begun by a word."""
    kinds: dict[str, Callable[[Found], Iterator[tuple[str, str]]]] = {
        "export": _export,
        "run": _run,
        "bundle": _bundle,
        "checkpoint": _checkpoint,
    }
    return [f"{word:<11} {text}" for word, text in kinds[found["kind"]](found)]


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")


def _base(base: Found) -> str:
    return public_name(base["model"], base.get("revision") is not None)


def _kept(kept: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(
        f"{name} {min(counts):,}{'' if min(counts) == max(counts) else f' to {max(counts):,}'} a layer"
        for name, counts in kept.items()
        if counts
    )


def _export(found: Found) -> Iterator[tuple[str, str]]:
    base, backbone, net = found["base"], found["backbone"], found["net"]
    yield "made", f"{found['created']} as {found['name']}, format {found['format']}"
    yield "base", f"{_base(base)} ({base['architecture']}), {base['parameters']:,} parameters"
    size = f"{backbone['parameters']:,} parameters, {backbone['bytes']:,} bytes"
    yield "backbone", f"{backbone['class']}, {size}, digest {backbone['digest'][:12]}"
    yield "removed", f"{found['removed']['global_sparsity']:.1%} of the base; kept: {_kept(found['kept'])}"
    gone = found["removed_memories"]
    since = f"; removed since: {_names(gone)}" if gone else ""
    yield "memories", f"{len(found['memories'])}: {_names(list(found['memories'])) or 'none'}{since}"
    router = found["router"]
    yield "router", "none" if router is None else f"{router['kind']}: {_names(router['labels'])}"
    even = "" if net["break_even"] is None else f"; break-even at {net['break_even']} memories of this size"
    saved = f"{abs(net['saved']):,} {'fewer' if net['saved'] >= 0 else 'more'} than the base"
    yield "net", f"{net['total']:,} bytes without router, {saved}{even}"
    yield "parity", f"largest logit difference {max(found['parity']['max_abs'].values()):.1e}"
    yield "loads in", ", ".join(found["loads_in"])


def _run(found: Found) -> Iterator[tuple[str, str]]:
    budget = found["budget"]
    yield "name", f"{found['name']}, {found['state']}"
    yield "base", f"{_base(found['base'])}, {budget['base_params']:,} parameters"
    kept = (f"{name} {count:,} of {budget['total_units'][name]:,}" for name, count in budget["keep"].items())
    removed = f"{budget['global_sparsity']:.2%} goes, layout {budget['layout']}"
    yield "budget", f"{removed}; kept: {', '.join(kept)}"
    yield "domains", f"{len(found['domains'])}: {_names(found['domains'])}"
    layers = found["memory_layers"]
    yield "memories", f"in layers {layer_range(layers)}" if layers else "none"
    yield "stages", ", ".join(f"{stage['name']} {stage['state']}" for stage in found["stages"])
    ended = f", finished {found['finished']}" if found.get("finished") else ""
    yield "started", f"{found['started']}{ended}, seed {found['seed']}"
    if "live" in found:
        yield from _live(found["live"])


def _live(live: Found) -> Iterator[tuple[str, str]]:
    if "step" in live:
        of = "" if live["steps"] is None else f" of {live['steps']:,}"
        parts = [f"{live['stage_of_step']} step {live['step']:,}{of}"]
        if live["kl"] is not None:
            parts.append(f"kl {live['kl']:.4f}")
        if "heldout_kl" in live:
            parts.append(f"held-out kl {live['heldout_kl']:.4f}")
        if "sparsity" in live:
            expected = f"{live['expected_sparsity']:.1%} expected of " if "expected_sparsity" in live else ""
            parts.append(f"sparsity {expected}{live['sparsity']:.1%}")
        if live["seconds_left"]:
            parts.append(f"about {duration(live['seconds_left'])} of training left")
        yield "now", ", ".join(parts)
    else:
        yield "now", f"{live['stage']}, no step yet"
    ago = f"last step {duration(live['seconds_since'])} ago; " if "seconds_since" in live else ""
    writer = live["writer"]
    yield "writer", f"{ago}{writer or 'nobody works on it: interrupted, go on with --resume'}"


def _bundle(found: Found) -> Iterator[tuple[str, str]]:
    yield "domain", found["domain"]
    yield "backbone", f"{found['backbone_digest'][:12]}, and no other"
    halves = ", ".join(f"{name} {count:,}" for name, count in found["parameters_by_half"].items())
    yield "parameters", f"{found['parameters']:,} ({halves}), {found.get('dtype', 'float32')}"
    yield "bytes", readable_bytes(sum(entry["size"] for entry in found["files"].values()))
    lora, kv = found["lora"], found["kv"]
    yield "LoRA", "none" if lora is None else f"rank {lora['rank']} on {', '.join(lora['targets'])}"
    yield "KV", "none" if kv is None else f"{kv['tokens']} memory tokens a layer"
    yield "layers", layer_range(found["layers"])
    origin = "added" if "added" in found else "shipped with its export"
    yield "origin", origin + (", compacted" if found.get("compacted") else "")
    yield "loads in", ", ".join(f"{name}: {what}" for name, what in found["loads_in"].items())


def _checkpoint(found: Found) -> Iterator[tuple[str, str]]:
    widths = found["widths"]
    cannot = "" if found["compressible"] else ", which koffkit cannot compress"
    yield "family", f"{found['model_type']}{cannot}"
    if "parameters" in found:
        yield "parameters", f"{found['parameters']:,}"
    yield "bytes", f"{found['bytes']:,}"
    shape = (f"{key} {value:,}" for key, value in widths.items() if isinstance(value, int))
    yield "widths", ", ".join(shape)
    yield "digest", found["digest"]
