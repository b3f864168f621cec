"""The server's own page in headless Chromium: it chats, shows who answered, and switches memories live."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from koffkit import KoffModel
from koffkit.artefact.export import open_export
from koffkit.storage.publish import staged

from ..browser import CHROMIUM, opened
from ..conftest import Shipped
from ..exports import changed_memory, with_memories

for package in ("fastapi", "uvicorn", "prometheus_client", "httpx", "playwright"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
from playwright.sync_api import expect  # noqa: E402

from ..served import Served, serving, wait_for  # noqa: E402

TURNS = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }} {% endfor %}"
TOKENS = 12


@pytest.fixture(scope="module")
def export(restored: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_memories(restored.export, tmp_path_factory.mktemp("page") / "out", {"east": ("north", -1.3)})


@pytest.fixture(scope="module")
def model(export: Path) -> KoffModel:
    model = KoffModel.from_pretrained(export)
    model.tokenizer.chat_template = TURNS
    return model


@pytest.fixture(scope="module")
def served(model: KoffModel) -> Iterator[Served]:
    with serving(model, pause=0.02) as served:
        yield served


def say(page: Any, text: str, *, tokens: int = TOKENS, key: str = "") -> None:
    """Type a text and press Enter."""
    page.locator("summary").click()
    page.get_by_label("tokens").fill(str(tokens))
    page.get_by_label("API key").fill(key)
    page.locator("summary").click()
    page.get_by_label("Text").fill(text)
    page.get_by_label("Text").press("Enter")


def done(page: Any) -> None:
    expect(page.locator("#send")).to_have_text("Send")


def answer_of(model: KoffModel, turns: list[str], memory: str | None) -> str:
    """What the model says to a conversation; turns are the user's and its own in turn."""
    roles = ("user", "assistant")
    said = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    return str(model.generate([said], memory=memory, max_new_tokens=TOKENS)[0])


def test_it_chats_shows_who_answered_and_switches(served: Served, model: KoffModel) -> None:
    with opened() as page:
        page.goto(served.url)
        names = page.get_by_role("group", name="Memory").get_by_role("button")
        expect(names).to_have_text(["auto", "none", "east", "north", "south"])
        expect(page.get_by_role("button", name="auto")).to_have_attribute("aria-pressed", "true")
        say(page, "north bright lamp")
        done(page)
        ((picked, odds),) = model.route(["north bright lamp"])
        assert picked is not None
        expect(page.locator(".answer .about").last).to_have_text(
            f"memory{picked}the router is {100 * odds:.1f} % sure"
        )
        turns = ["north bright lamp", answer_of(model, ["north bright lamp"], picked)]
        expect(page.locator(".answer .text").last).to_have_text(turns[-1])
        for name, memory in (("east", "east"), ("none", None)):
            page.get_by_role("button", name=name).click()
            expect(page.get_by_role("button", name=name)).to_have_attribute("aria-pressed", "true")
            say(page, "stone lamp")
            done(page)
            turns.append("stone lamp")
            turns.append(answer_of(model, turns, memory))
            expect(page.locator(".answer .text").last).to_have_text(turns[-1])
            expect(page.locator(".answer .about").last).to_have_text(
                "no memory" if memory is None else "memoryeast"
            )
        assert len(set(turns[1::2])) == 3
        page.get_by_role("button", name="New").click()
        expect(page.locator(".turn")).to_have_count(0)


def test_stop_ends_the_row_and_what_was_said_stays(model: KoffModel) -> None:
    with serving(model, pause=0.2) as served, opened() as page:  # 24 s for all that is asked for
        page.goto(served.url)
        page.get_by_role("button", name="north").click()
        say(page, "river", tokens=120)
        expect(page.locator(".answer .text")).not_to_be_empty()
        assert served.figure("koffkit_active_rows") == 1
        page.get_by_role("button", name="Stop").click()
        done(page)
        wait_for(lambda: served.figure("koffkit_active_rows") == 0)
        expect(page.locator(".error")).to_have_count(0)
        assert page.locator(".answer .text").text_content()


def test_an_error_is_shown_and_is_no_part_of_the_conversation(model: KoffModel) -> None:
    with serving(model, key="sesame") as served, opened() as page:
        page.goto(served.url)
        page.get_by_role("button", name="north").click()
        say(page, "who is there")
        expect(page.locator(".error")).to_contain_text("API key")
        expect(page.locator(".answer .about").last).to_have_text("no answer")
        say(page, "north bright lamp", key="sesame")
        done(page)
        expect(page.locator(".answer .text").last).to_have_text(
            answer_of(model, ["north bright lamp"], "north")
        )


def test_a_memory_that_comes_later_gets_a_button_and_a_silent_server_is_told(
    export: Path, tmp_path: Path
) -> None:
    shutil.copytree(export, tmp_path / "out")
    model = KoffModel.from_pretrained(tmp_path / "out")
    with opened() as page:
        page.clock.install()
        with serving(model, open_export(tmp_path / "out"), rescan=0.05) as served:
            page.goto(served.url)
            expect(page.get_by_role("button", name="north")).to_be_visible()
            memories = tmp_path / "out" / "memories"
            with staged(memories / "west") as partial:
                shutil.copytree(
                    changed_memory(memories / "north", tmp_path / "west", "west", 0.7),
                    partial,
                    dirs_exist_ok=True,
                )
            wait_for(lambda: "west" in served.service.names)
            page.clock.fast_forward(6000)
            expect(page.get_by_role("button", name="west")).to_be_visible()
            expect(page.get_by_placeholder("Text to go on with")).to_be_visible()  # no chat template
        page.clock.fast_forward(6000)
        expect(page.get_by_role("status")).to_have_text("the server does not answer")


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_is_wider_than_the_window(served: Served, width: int) -> None:
    with opened(width, 700) as page:
        page.goto(served.url)
        expect(page.get_by_role("button", name="south")).to_be_visible()
        say(page, "river" * 60)
        done(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        send = page.locator("#send").bounding_box()
        assert send is not None and send["x"] + send["width"] <= width and send["y"] + send["height"] <= 700
        colours = {
            scheme: (page.emulate_media(color_scheme=scheme), ground(page))[1] for scheme in ("light", "dark")
        }
        assert colours["light"] > 200 > 60 > colours["dark"]


def ground(page: Any) -> int:
    """The red of the page's ground, 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return int(re.findall(r"\d+", colour)[0])
