"""The server's own page, without a browser: what its script asks for, finds and reads is there."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from koffkit import KoffModel

from ..conftest import Shipped

for package in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(package)

from ..served import serving  # noqa: E402

TURNS = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }} {% endfor %}"
VALUES: dict[str, Any] = {
    "model": "auto",
    "stream": True,
    "max_tokens": 2,
    "temperature": 0.5,
    "messages": [{"role": "user", "content": "quiet river"}],
    "prompt": "quiet river",
}
"""Of every field that the script sends; a new one belongs here."""


def test_the_page_asks_for_what_there_is_and_reads_what_comes(shipped: Shipped) -> None:
    model = KoffModel.from_pretrained(shipped.export)
    model.tokenizer.chat_template = TURNS
    with serving(model) as served, served.client as client:
        page = client.get("/").text
        script = page.partition("<script>")[2].partition("</script>")[0]
        places = set(re.findall(r'\$\("(\w+)"\)', script))
        assert len(places) > 5 and places <= set(re.findall(r'id="(\w+)"', page))
        assert re.findall(r"fetch\((\S+?)[,)]", script) == ['"health"', "path"]
        assert set(re.findall(r"health\.(\w+)", script)) <= client.get("/health").json().keys()
        (common,) = re.findall(r"asked = \{(.+?)\};", script, re.DOTALL)
        kinds = re.findall(r'\["(v1/\S+)", \{\.\.\.asked, (\w+): \w+\}\]', script)
        assert [kind[0] for kind in kinds] == re.findall(r'"(v1/[^"]+)"', script) and len(kinds) == 2
        for path, own in kinds:
            fields = [*re.findall(r"(\w+): ", common), own]
            answer = served.post(f"/{path}", {name: VALUES[name] for name in fields})
            assert answer.status_code == 200, answer.text
            first, *_, done = answer.text.strip().split("\n\n")
            (choice,) = json.loads(first.removeprefix("data: "))["choices"]
            assert set(re.findall(r"picked\.(\w+)", script)) <= choice["koffkit"].keys()
            assert "content" in choice["delta"] if own == "messages" else "text" in choice
            assert done == "data: [DONE]"
