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
Facts = Mapping[str, Any]


def overview(facts: Facts) -> list[str]:
    """At most nine lines about what `koffkit.runtime.inspect.describe` tells, each begun by a word."""
    kinds: dict[str, Callable[[Facts], Iterator[tuple[str, str]]]] = {
        "export": _export,
        "run": _run,
        "bundle": _bundle,
        "checkpoint": _checkpoint,
    }
    return [f"{word:<11} {text}" for word, text in kinds[facts["kind"]](facts)]


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")


def _base(base: Facts) -> str:
    return public_name(base["model"], base.get("revision") is not None)


def _kept(kept: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(
        f"{name} {min(counts):,}{'' if min(counts) == max(counts) else f' to {max(counts):,}'} a layer"
        for name, counts in kept.items()
        if counts
    )


def _export(facts: Facts) -> Iterator[tuple[str, str]]:
    base, backbone, net = facts["base"], facts["backbone"], facts["net"]
    yield "made", f"{facts['created']} as {facts['name']}, format {facts['format']}"
    yield "base", f"{_base(base)} ({base['architecture']}), {base['parameters']:,} parameters"
    size = f"{backbone['parameters']:,} parameters, {backbone['bytes']:,} bytes"
    yield "backbone", f"{backbone['class']}, {size}, digest {backbone['digest'][:12]}"
    yield "removed", f"{facts['removed']['global_sparsity']:.1%} of the base; kept: {_kept(facts['kept'])}"
    yield "memories", _memories(facts) if facts.get("merged") is None else _merged(facts["merged"])
    router = facts["router"]
    yield "router", "none" if router is None else f"{router['kind']}: {_names(router['labels'])}"
    even = "" if net["break_even"] is None else f"; smaller with at most {net['break_even']} of this size"
    saved = f"{abs(net['saved']):,} {'fewer' if net['saved'] >= 0 else 'more'} than the base"
    yield "net", f"{net['total']:,} bytes without router, {saved}{even}"
    yield "parity", f"largest logit difference {max(facts['parity']['max_abs'].values()):.1e}"
    formats = ", ".join(_route(name, what) for name, what in facts.get("routes", {}).items())
    yield "loads in", ", ".join(facts["loads_in"]) + (f"; exports as {formats}" if formats else "")


def _route(name: str, what: str) -> str:
    """An export format that the run behind an export can be exported in, or cannot."""
    return f"not {name}" if what.startswith("not: ") else name


def _memories(facts: Facts) -> str:
    gone = facts["removed_memories"]
    since = f"; removed since: {_names(gone)}" if gone else ""
    neurons = facts.get("neurons")
    shared = f"; {neurons['count']:,} neurons, {neurons['distinct']:,} different" if neurons else ""
    return f"{len(facts['memories'])}: {_names(list(facts['memories'])) or 'none'}{shared}{since}"


def _merged(merged: Facts) -> str:
    without = f", without its {', '.join(merged['left_out'])}" if merged["left_out"] else ""
    without += f", its {', '.join(merged['beside'])} beside them" if merged.get("beside") else ""
    neurons = f", {merged['neurons']:,} neurons" if merged["neurons"] else ""
    return f"{merged['domain']} is in the weights ({', '.join(merged['halves'])}{neurons}){without}"


def _run(facts: Facts) -> Iterator[tuple[str, str]]:
    budget = facts["budget"]
    yield "name", f"{facts['name']}, {facts['state']}"
    yield "base", f"{_base(facts['base'])}, {budget['base_params']:,} parameters"
    kept = (f"{name} {count:,} of {budget['total_units'][name]:,}" for name, count in budget["keep"].items())
    removed = f"{budget['global_sparsity']:.2%} goes, layout {budget['layout']}"
    yield "budget", f"{removed}; kept: {', '.join(kept)}"
    yield "domains", f"{len(facts['domains'])}: {_names(facts['domains'])}"
    layers = facts["memory_layers"]
    yield "memories", f"in layers {layer_range(layers)}" if layers else "none"
    yield "stages", ", ".join(f"{stage['name']} {stage['state']}" for stage in facts["stages"])
    ended = f", finished {facts['finished']}" if facts.get("finished") else ""
    yield "started", f"{facts['started']}{ended}, seed {facts['seed']}"
    if "live" in facts:
        yield from _live(facts["live"])


def _live(live: Facts) -> Iterator[tuple[str, str]]:
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


def _neurons(neurons: Facts | None) -> str:
    if neurons is None:
        return "none"
    kinds = [word for word in ("tuned", "fitted") if neurons.get(word)]
    return f"{neurons['count']:,} restored, {', '.join([neurons['layout'], *kinds])}"


def _bundle(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "domain", facts["domain"]
    yield "backbone", f"{facts['backbone_digest'][:12]}, and no other"
    halves = ", ".join(f"{name} {count:,}" for name, count in facts["parameters_by_half"].items())
    size = readable_bytes(sum(entry["size"] for entry in facts["files"].values()))
    yield "parameters", f"{facts['parameters']:,} ({halves}), {facts.get('dtype', 'float32')}, {size}"
    lora, kv = facts["lora"], facts["kv"]
    yield "LoRA", "none" if lora is None else f"rank {lora['rank']} on {', '.join(lora['targets'])}"
    yield "KV", "none" if kv is None else f"{kv['tokens']} memory tokens a layer"
    yield "neurons", _neurons(facts.get("neurons"))
    yield "layers", layer_range(facts["layers"])
    origin = "added" if "added" in facts else "shipped with its export"
    yield "origin", origin + (", compacted" if facts.get("compacted") else "")
    yield "loads in", ", ".join(f"{name}: {what}" for name, what in facts["loads_in"].items())


def _checkpoint(facts: Facts) -> Iterator[tuple[str, str]]:
    widths = facts["widths"]
    cannot = "" if facts["compressible"] else ", which koffkit cannot compress"
    yield "family", f"{facts['model_type']}{cannot}"
    if "parameters" in facts:
        yield "parameters", f"{facts['parameters']:,}"
    yield "bytes", f"{facts['bytes']:,}"
    shape = (f"{key} {value:,}" for key, value in widths.items() if isinstance(value, int))
    yield "widths", ", ".join(shape)
    yield "digest", facts["digest"]
