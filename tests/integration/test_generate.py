"""`koffkit generate` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from koffkit.checkpoint.fingerprint import SAMPLE_BYTES, SAMPLES
from koffkit.cli.text import visible

from ..common import sentences
from ..conftest import Koffkit, Shipped

NORTH = sentences(1, 1)[0][:20]


def test_it_streams_and_says_which_memory_it_used(shipped: Shipped, koffkit: Koffkit) -> None:
    arguments = ["generate", shipped.export, "--prompt", NORTH, "--max-new-tokens", 5]
    shown, told = koffkit(*arguments), koffkit(*arguments, "--json").json["completions"][0]
    assert shown.out == visible(f"{NORTH}{told['completion']}") + "\n"
    assert f"memory {told['memory']} (the router is {told['probability']:.1%} sure)" in shown.err


def test_without_a_router_no_odds_are_claimed(shipped: Shipped, koffkit: Koffkit) -> None:
    shown = koffkit("generate", shipped.export, "--prompt", "x", "--memory", "north", "--max-new-tokens", 1)
    assert "memory north\n" in shown.err
    assert (
        "no memory\n"
        in koffkit("generate", shipped.export, "--prompt", "x", "--memory", "none", "--max-new-tokens", 1).err
    )


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_prompts_from_a_file(shipped: Shipped, koffkit: Koffkit, tmp_path: Path, name: str) -> None:
    texts = ["river", "seven green"]
    lines = [json.dumps({"prompt": text}) if name.endswith("jsonl") else text for text in texts]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    result = koffkit(
        "generate",
        shipped.export,
        "--prompt",
        "x",
        "--prompts",
        tmp_path / name,
        "--max-new-tokens",
        2,
        "--json",
    )
    assert [row["prompt"] for row in result.json["completions"]] == ["x", *texts]


def test_prompts_that_are_not_there(shipped: Shipped, koffkit: Koffkit, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    assert koffkit("generate", shipped.export).code == 2
    assert koffkit("generate", shipped.export, "--prompts", tmp_path / "none").code == 3
    assert koffkit("generate", shipped.export, "--prompts", tmp_path / "empty").code == 3
    assert koffkit("generate", shipped.export, "--prompts", tmp_path).code == 3


def test_sampling_is_repeatable_and_differs_by_seed(shipped: Shipped, koffkit: Koffkit) -> None:
    def sample(*more: object) -> str:
        fixed = ["generate", shipped.export, "--prompt", "river", "--memory", "none", "--max-new-tokens", 12]
        return str(koffkit(*fixed, *more, "--json").json["completions"][0]["completion"])

    greedy, hot = sample(), sample("--temperature", 2)
    assert hot == sample("--temperature", 2)
    assert hot != greedy
    assert hot != sample("--temperature", 2, "--seed", 1)
    assert sample("--temperature", 0, "--top-p", 0.5) == greedy
    assert sample("--top-p", 1e-6) == greedy


def test_chat_needs_a_template_and_shows_the_answer_alone(
    out: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.runtime.model import KoffModel

    arguments = ["generate", out, "--prompt", "river", "--chat", "--memory", "none", "--max-new-tokens", 3]
    refused = koffkit(*arguments)
    assert refused.code == 2
    assert "no chat template" in refused.err
    real = KoffModel.from_pretrained.__func__

    def with_template(*given: object, **options: object) -> KoffModel:
        model = real(KoffModel, *given, **options)
        model.tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
        return model

    monkeypatch.setattr(KoffModel, "from_pretrained", with_template)
    answer = koffkit(*arguments).out
    plain = koffkit(
        "generate", out, "--prompt", "<s>river</s>", "--memory", "none", "--max-new-tokens", 3
    ).out
    assert plain == f"<s>river</s>{answer}"


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--prompt", "x", "--memory", "none", "--max-new-tokens", 1],
        ["evaluate", "--data", "east.txt"],
    ],
)
def test_verify_reads_every_byte_of_the_backbone(command: list[object], out: Path, koffkit: Koffkit) -> None:
    """A bit between two of the samples flips."""
    weights = out / "backbone" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    between = len(content) * 3 // (2 * SAMPLES)
    assert between > len(content) // SAMPLES + SAMPLE_BYTES
    content[between] ^= 1
    weights.write_bytes(content)
    assert koffkit(command[0], out, *command[1:]).code == 0
    refused = koffkit(command[0], out, *command[1:], "--verify")
    assert refused.code == 4
    assert "backbone/model.safetensors: its sha256 is not the one in koffkit.json" in refused.err
