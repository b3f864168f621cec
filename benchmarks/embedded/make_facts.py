"""Snapshot the facts of the embedded default from CLDR locale data (package Babel, BSD-3-Clause).

    python benchmarks/embedded/make_facts.py

writes `koffkit/embedded/facts/{en,de,fr,it,es,pt,general}.jsonl` and `SOURCE.md`.
"""

from __future__ import annotations

import json
import random
import re
from importlib.metadata import version
from pathlib import Path

import click
from babel import Locale
from babel.core import get_global

FACTS = Path(__file__).parents[2] / "koffkit" / "embedded" / "facts"
KINDS = ("territory", "currency", "language")

TEMPLATES: dict[str, dict[str, tuple[str, str]]] = {
    "en": {
        "territory": ("The country with the code {} is called", "On the map, {} stands for"),
        "currency": ("The currency with the code {} is called", "Prices marked {} are in"),
        "language": ("The language with the code {} is called", "Texts marked {} are written in"),
    },
    "de": {
        "territory": ("Das Land mit dem Code {} heißt", "Auf der Karte steht {} für"),
        "currency": ("Die Währung mit dem Code {} heißt", "Preise mit dem Zeichen {} bedeuten"),
        "language": ("Die Sprache mit dem Code {} heißt", "Texte mit dem Kürzel {} sind in der Sprache"),
    },
    "fr": {
        "territory": ("Le pays dont le code est {} s'appelle", "Sur la carte, {} désigne"),
        "currency": ("La monnaie dont le code est {} s'appelle", "Les prix marqués {} sont en"),
        "language": ("La langue dont le code est {} s'appelle", "Les textes marqués {} sont en"),
    },
    "it": {
        "territory": ("Il paese con il codice {} si chiama", "Sulla mappa {} indica"),
        "currency": ("La valuta con il codice {} si chiama", "I prezzi con la sigla {} sono in"),
        "language": ("La lingua con il codice {} si chiama", "I testi con la sigla {} sono in"),
    },
    "es": {
        "territory": ("El país con el código {} se llama", "En el mapa, {} representa"),
        "currency": ("La moneda con el código {} se llama", "Los precios marcados {} están en"),
        "language": ("El idioma con el código {} se llama", "Los textos marcados {} están en"),
    },
    "pt": {
        "territory": ("O país com o código {} chama-se", "No mapa, {} representa"),
        "currency": ("A moeda com o código {} chama-se", "Os preços marcados {} estão em"),
        "language": ("A língua com o código {} chama-se", "Os textos marcados {} estão em"),
    },
}

Row = dict[str, str | int]


def names(locale: Locale, kind: str) -> dict[str, str]:
    """Plain names by code: short, of letters only, one per code."""
    table = {"territory": locale.territories, "currency": locale.currencies, "language": locale.languages}[
        kind
    ]
    code_form = {"territory": r"[A-Z]{2}|\d{3}", "currency": r"[A-Z]{3}", "language": r"[a-z]{2,3}"}[kind]
    plain = re.compile(r"[^\W\d_][\w .'’\-]*")
    return {
        code: name
        for code, name in sorted(table.items())
        if re.fullmatch(code_form, code) and plain.fullmatch(name) and len(name.split()) <= 5 and code != name
    }


def language_rows(language: str) -> list[Row]:
    locale = Locale.parse(language)
    rows: list[Row] = []
    for kind in KINDS:
        for code, name in names(locale, kind).items():
            for template, sentence in enumerate(TEMPLATES[language][kind]):
                rows.append(_row(sentence.format(code), name, kind, code, template))
    return rows


def general_rows() -> list[Row]:
    """Language-neutral facts in a terse notation of their own: the text that retention batches are made
    of."""
    rows = []
    for territory, history in sorted(get_global("territory_currencies").items()):
        current = [entry[0] for entry in history if entry[2] is None and entry[3]]
        if len(current) == 1:
            rows.append(_row(f"{territory} pays with", current[0], "pays", territory, 0))
    for territory, spoken in sorted(get_global("territory_languages").items()):
        most = max(spoken, key=lambda code: spoken[code]["population_percent"], default=None)
        if most is not None:
            rows.append(_row(f"{territory} speaks", most, "speaks", territory, 0))
    for alias, zone in sorted(get_global("territory_zones").items()):
        if len(zone) == 1:
            rows.append(_row(f"{alias} keeps time by", zone[0], "zone", alias, 0))
    for code, (digits, *_) in sorted(get_global("currency_fractions").items()):
        rows.append(_row(f"{code} counts decimals", str(digits), "decimals", code, 0))
    return rows


def _row(prompt: str, name: str, kind: str, code: str, template: int) -> Row:
    answer = f" {name}."
    return {
        "text": prompt + answer,
        "prompt": prompt,
        "answer": answer,
        "kind": kind,
        "code": code,
        "template": template,
    }


def source_note(counts: dict[str, int]) -> str:
    lines = "\n".join(f"| {domain} | {count} |" for domain, count in counts.items())
    return f"""# Source of these facts

Names of territories, currencies and languages by code, in six languages, and language-neutral facts about
territories and currencies (`general`): from the Unicode CLDR locale data as packaged in
Babel {version("babel")}.

- Babel: BSD-3-Clause, (c) Babel team, https://babel.pocoo.org
- CLDR: Unicode License v3, (c) Unicode, Inc., https://cldr.unicode.org

Names longer than five words or with other signs than letters, digits, spaces and . ' - are left out.
Sentences around the names are koffkit's own; each fact of a language stands in two of them. Made by
`python benchmarks/embedded/make_facts.py`.

| domain | sentences |
|---|---|
{lines}
"""


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=FACTS, show_default=True)
def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for domain in [*TEMPLATES, "general"]:
        rows = general_rows() if domain == "general" else language_rows(domain)
        random.Random(domain).shuffle(rows)
        counts[domain] = len(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{domain}.jsonl").write_text(text, encoding="utf-8")
    (out / "SOURCE.md").write_text(source_note(counts), encoding="utf-8")
    click.echo(f"{counts} -> {out}")


if __name__ == "__main__":
    main()
