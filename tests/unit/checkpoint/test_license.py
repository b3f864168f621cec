from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.checkpoint.license import card_header, license_files, license_of


def test_the_card_says_it(tmp_path: Path) -> None:
    header = "license: other\nlicense_name: ours\nlicense_link: LICENSE\nlanguage: [en]\n"
    (tmp_path / "README.md").write_text(f"---\n{header}---\n# A model\n")
    (tmp_path / "LICENSE").write_text("MIT License\n")
    assert license_of(tmp_path) == {"license": "other", "license_name": "ours", "license_link": "LICENSE"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "                                 Apache License\n                           Version 2.0",
            "apache-2.0",
        ),
        ("MIT License\n\nCopyright (c) 2024", "mit"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n", "llama3.2"),
    ],
)
def test_else_its_license_file(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "README.md").write_text("# No header\n")
    (tmp_path / "LICENSE.txt").write_text(text)
    assert license_of(tmp_path) == {"license": name}


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# Title",
        "---\nlicense: [a, b]\n---\n",
        "---\n- a\n---\n",
        "---\na: {\n---\n",
        "---\nlicense: mit\n",
    ],
)
def test_what_says_nothing_gives_nothing(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "LICENSE").write_text("Terms of our own.\n")
    assert license_of(tmp_path) == {}


def test_a_line_that_could_draw_on_a_terminal_is_no_license(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text('---\nlicense: "a\\e[2Jb"\n---\n')
    assert card_header(tmp_path / "README.md") == {"license": "a\x1b[2Jb"}
    assert license_of(tmp_path) == {}


def test_a_bomb_of_aliases_is_not_unfolded(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\na: &a [x]\nb: [*a, *a]\n---\n")
    assert card_header(tmp_path / "README.md") == {}


def test_terms_are_files_of_these_names(tmp_path: Path) -> None:
    for name in ("NOTICE", "LICENSE", "USE_POLICY.md", "config.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "LICENSES").mkdir()
    assert [path.name for path in license_files(tmp_path)] == ["LICENSE", "NOTICE", "USE_POLICY.md"]
