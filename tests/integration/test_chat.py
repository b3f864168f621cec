"""`koffkit chat`: turns from standard input, memories that change, answers that are stopped."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from koffkit import KoffModel
from koffkit.errors import UsageError
from koffkit.runtime.conversation import Conversation

from ..conftest import Koffkit, Shipped

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def model(shipped: Shipped) -> KoffModel:
    return KoffModel.from_pretrained(shipped.export)


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_memories_change_between_turns(
    shipped: Shipped, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(
        monkeypatch,
        "river stone",
        "/memory south",
        "seven",
        "/memory soth",
        "/memories",
        "/help",
        "",
        "/quit",
        "lamp",
    )
    done = koffkit("chat", shipped.export, "--memory", "north", "--max-new-tokens", 4)
    assert done.code == 0 and "[north]" in done.err and "[south]" in done.err
    assert "memory 'soth': not loaded; there is north, south" in done.err
    assert "auto, none, north, south" in done.err and "/reset" in done.err
    model = KoffModel.from_pretrained(shipped.export)
    first = model.complete("river stone", "north", 4).strip()
    second = model.complete(f"river stone\n{first}\nseven", "south", 4).strip()
    assert [line.strip() for line in done.out.splitlines() if line.strip()] == [
        line.strip() for line in f"{first}\n{second}".splitlines() if line.strip()
    ]


def test_the_router_decides_unless_told_otherwise(
    shipped: Shipped, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "river stone")
    assert "the router is" in koffkit("chat", shipped.export, "--max-new-tokens", 2).err
    assert koffkit("chat", shipped.export, "--memory", "nrth").code == 2
    assert koffkit("chat", shipped.export / "nowhere").code == 2


def test_turns_go_through_the_chat_template(model: KoffModel) -> None:
    model.tokenizer.chat_template = TEMPLATE
    talk = Conversation(model, "north", "be brief", {"max_new_tokens": 4})
    pieces: list[str] = []
    first = talk.say("river stone", "north", pieces.append)
    assert "".join(pieces).strip() == first.text
    expected = model.complete([*talk.turns, {"role": "user", "content": "seven"}], "south", 4)
    assert talk.say("seven", "south", pieces.append).text == expected.strip()
    assert [turn["role"] for turn in talk.turns] == ["system", "user", "assistant", "user", "assistant"]
    talk.forget()
    assert [turn["role"] for turn in talk.turns] == ["system"]


def test_an_answer_can_be_stopped(model: KoffModel) -> None:
    talk = Conversation(model, "north", None, {"max_new_tokens": 40})
    heard: list[str] = []

    def write(text: str) -> None:
        heard.append(text)
        if "".join(heard).strip():
            raise KeyboardInterrupt

    answer = talk.say("river stone", "north", write)
    assert answer.stopped and answer.text == "".join(heard).strip()
    assert talk.turns[-1] == {"role": "assistant", "content": answer.text}
    assert not talk.say("seven", "north", lambda _: None).stopped


def test_a_conversation_beyond_the_context_is_left_as_it_was(model: KoffModel) -> None:
    talk = Conversation(model, None, None, {"max_new_tokens": 2})
    with pytest.raises(UsageError, match="and the model reads"):
        talk.say("river " * 5000, None, lambda _: None)
    assert talk.turns == []


def test_ctrl_c_stops_the_answer_and_not_the_conversation(shipped: Shipped, tmp_path: Path) -> None:
    """A real signal, to a real process, while it answers."""
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # who runs the tests may ignore it
        "from koffkit.runtime import conversation\n"
        "usual = conversation._Pieces.on_finalized_text\n"
        "def interrupted(self, text, stream_end=False):\n"
        "    usual(self, text, stream_end)\n"
        "    if 'once' not in vars(conversation):\n"
        "        conversation.once = True\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "conversation._Pieces.on_finalized_text = interrupted\n"
        "from koffkit.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    environment: dict[str, Any] = os.environ | {"KOFFKIT_CACHE": str(tmp_path)}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "chat",
            str(shipped.export),
            "--memory",
            "north",
            "--max-new-tokens",
            "30",
        ],
        input="river stone\nseven\n",
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[stopped]") == 1
    assert done.stderr.count("[north]") == 2
