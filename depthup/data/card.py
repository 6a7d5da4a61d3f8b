"""The data card and the licence ledger, read off the lineage of rows: what data are made of, and what they may serve.

A row tells of itself in ``lineage`` (as `depthup synthesize` writes it) or in fields of its own; ``FIELDS`` has the
names. A row that tells nothing is counted as unknown, never as free.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

UNKNOWN: Literal["unknown"] = "unknown"
Openness = Literal["closed", "open", "rules", "human", "unknown"]

# What a card asks -> the names under which rows answer, in lineage first.
FIELDS: dict[str, tuple[str, ...]] = {
    "source": ("source", "dataset", "origin"),
    "licence": ("licence", "license"),
    "generator": (
        "generator",
        "backend",
        "model",
        "chosen_model",
        "rejected_model",
        "generated_by",
        "made_by",
        "seed_generator",
    ),
    "seed": ("seed", "seed_id", "seed_row"),
}

# Models whose weights nobody else has, as they are named in data sets and as backends -> who makes them. Their terms
# forbid, or did at times forbid, to train competing models on what they write. Names are compared in lower case, with
# hyphens for spaces. To add one, add its row.
CLOSED: tuple[tuple[str, str], ...] = (
    (r"gpt-?3\.5|gpt-?4|gpt-?5|chatgpt|davinci|(?<![a-z0-9])o[134](-mini|-preview|-pro)?(?![a-z0-9])", "OpenAI"),
    (r"claude", "Anthropic"),
    (r"gemini|palm-?2|text-bison|(?<![a-z])bard(?![a-z])", "Google"),
    (r"command-(xlarge|medium|nightly)", "Cohere"),
    (r"mistral-(large|medium)(?!-instruct-2407)|mistral-next", "Mistral AI, hosted only"),
    (r"qwen[0-9.]*-?(max|plus|turbo)", "Alibaba, hosted only"),
)  # fmt: skip
# Models whose weights can be had, as they are named; what stands in neither table is unknown, never open. A model that
# was run from a folder (`local:`), or is served by this machine, has its weights there.
OPEN = re.compile(
    r"(?<![a-z])(alpaca|baichuan|bloomz?|c4ai|cerebras-gpt|dbrx|deepseek|dolly|falcon|flan|gemma|glm|gpt-?2|gpt-?j|gpt-?neo|"
    r"gpt-oss|granite|internlm|jamba|kimi|koala|llama|llemma|mamba|minicpm|minitron|mi[sx]tral|mpt|nemotron|oasst|olmo|opt|"
    r"orca|phi|pythia|qwen|qwq|redpajama|rwkv|smollm|solar|stablelm|starcoder|starling|t5|tinyllama|tulu|ultralm|vicuna|"
    r"wizardlm|wizardmath|yi|zephyr)(?![a-z])|^local:|^https?://(localhost|127\.0\.0\.1|\[::1\])[:/]"
)
_PAID_SERVERS = (("api.openai.com", "OpenAI"), ("openai.azure.com", "OpenAI"), ("api.anthropic.com", "Anthropic"),
                 ("generativelanguage.googleapis.com", "Google"))  # fmt: skip

# Licences -> whether they allow commercial use, and what else they ask. Names are compared without case and spaces.
LICENCES: dict[str, tuple[bool | None, str]] = {
    "mit": (True, "keep the notice"),
    "apache-2.0": (True, "keep the notice, state changes"),
    "bsd-3-clause": (True, "keep the notice"),
    "cc0-1.0": (True, ""),
    "public-domain": (True, ""),
    "ccby3.0": (True, "name the authors"),
    "ccby4.0": (True, "name the authors"),
    "ccbysa3.0": (True, "name the authors, pass on under the same licence"),
    "ccbysa4.0": (True, "name the authors, pass on under the same licence"),
    "odc-by": (True, "name the source"),
    "cdla-sharing-1.0": (True, "pass on under the same licence"),
    "cdla-permissive-2.0": (True, "keep the licence"),
    "ccbync4.0": (False, "name the authors"),
    "ccbyncsa4.0": (False, "name the authors, pass on under the same licence"),
    "ccbyncnd4.0": (False, "name the authors, no changed copies"),
    "research-only": (False, ""),
    "llama-2": (True, "Meta's terms; its output not for other models; by size of the company"),
    "gemma": (True, "Google's terms and list of forbidden uses"),
    UNKNOWN: (None, "find out, or leave these rows out"),
}


@dataclass(frozen=True, slots=True)
class Lineage:
    """What one row tells of its origin.

    Attributes:
        source: The data set.
        licence: As the row spells it; ``unknown`` where it does not.
        generators: What wrote texts of it; empty where it names none.
        openness: ``closed`` if one generator is; else ``unknown`` if one is known neither as closed nor as open, or
            none is named; else ``open`` if a model is among them, ``rules`` (a factory), or ``human``.
        has_seed: Whether it names the row that it was made of.
        verdicts: Filter or check -> its outcome, as texts.
    """

    source: str
    licence: str
    generators: tuple[str, ...]
    openness: Openness
    has_seed: bool
    verdicts: Mapping[str, str]


@dataclass
class Card:
    """What :func:`card_of` counts."""

    num_rows: int = 0
    groups: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)  # source, licence, generator, openness
    num_with_seed: int = 0
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, lineage: Lineage) -> None:
        """Count a row."""
        self.num_rows += 1
        self.num_with_seed += lineage.has_seed
        generator = " and ".join(sorted(lineage.generators)) or ("people" if lineage.openness == "human" else UNKNOWN)
        self.groups[lineage.source, lineage.licence, generator, lineage.openness] += 1
        self.verdicts.update(lineage.verdicts.items())

    def count(self, openness: Openness) -> int:
        """Rows of an openness."""
        return sum(count for group, count in self.groups.items() if group[3] == openness)

    def by_licence(self) -> dict[str, int]:
        """Licence -> rows, most first."""
        counts: Counter[str] = Counter()
        for (_, licence, _, _), count in self.groups.items():
            counts[licence] += count
        return dict(counts.most_common())


def lineage_of(row: Any, source: str = UNKNOWN, licence: str = UNKNOWN) -> Lineage:
    """What a row tells of its origin.

    Args:
        row: As read.
        source: Of rows that name none.
        licence: Of rows that name none.
    """
    fields = row if isinstance(row, Mapping) else {}
    inner = fields.get("lineage")
    places = [inner, fields] if isinstance(inner, Mapping) else [fields]
    told = {name: _first(places, keys) for name, keys in FIELDS.items()}
    generators = tuple(dict.fromkeys(_all(places, FIELDS["generator"])))
    openness = _openness(generators)
    names = tuple(name for name in generators if name not in ("model", "factory", "human")) or generators
    return Lineage(told["source"] or source, told["licence"] or licence, names, openness, bool(told["seed"]),
                   _verdicts(places))  # fmt: skip


def closed_by(generator: str) -> str | None:
    """Who makes a closed model, by its name or the address of its server; None for any other."""
    plain = re.sub(r"[\s_]+", "-", generator.lower())
    for address, owner in _PAID_SERVERS:
        if address in plain:
            return owner
    return next((owner for pattern, owner in CLOSED if re.search(pattern, plain)), None)


def commercial_use(licence: str) -> tuple[bool | None, str]:
    """(whether a licence allows commercial use, None if it is not known; what else it asks)."""
    return LICENCES.get(_plain_licence(licence)) or LICENCES[UNKNOWN]


def _plain_licence(licence: str) -> str:
    """``CC BY-NC 4.0``, ``cc-by-nc-4.0`` -> ``ccbync4.0``; ``Apache 2.0`` -> ``apache-2.0``."""
    plain = re.sub(r"[\s_]+", "-", licence.strip().lower().replace("license", "").replace("licence", "").strip())
    if plain.startswith("cc-"):
        return plain.replace("-", "") if not plain.startswith("cc0") else plain
    return {"cc0": "cc0-1.0", "apache": "apache-2.0", "apache2": "apache-2.0"}.get(plain, plain)


def card_of(lineages: Iterable[Lineage]) -> Card:
    """Count rows by what they tell."""
    card = Card()
    for lineage in lineages:
        card.add(lineage)
    return card


def render_card(card: Card, files: Mapping[str, str], num_bad: int = 0) -> str:
    """The card as Markdown: sources, the licence ledger, who wrote it, what filters said.

    Args:
        card: Of :func:`card_of`.
        files: File -> SHA-256.
        num_bad: Rows that are no JSON; they are in no other figure.
    """
    lines = ["# Data card", "", f"{card.num_rows:,} rows in {len(files)} files.", ""]
    if num_bad:
        lines += [f"{num_bad:,} more rows are no JSON and are counted nowhere below.", ""]
    lines += ["## What it is made of", "", "| source | licence | written by | kind | rows |", "|---|---|---|---|---:|"]
    lines += [f"| {' | '.join(map(_cell, group))} | {count:,} |" for group, count in card.groups.most_common()]
    lines += ["", "## Licence ledger", "", "| licence | rows | commercial use | asks for |", "|---|---:|---|---|"]
    said = {True: "yes", False: "**no**", None: "**not known**"}
    for licence, count in card.by_licence().items():
        allowed, asks = commercial_use(licence)
        lines.append(f"| {_cell(licence)} | {count:,} | {said[allowed]} | {asks} |")
    lines += ["", *_against_commercial_use(card), "", "## Lineage", ""]
    lines.append(f"{card.num_with_seed:,} of {card.num_rows:,} rows name the row that they were made of.")
    if card.verdicts:
        lines += ["", "| filter | verdict | rows |", "|---|---|---:|"]
        lines += [f"| {_cell(name)} | {_cell(verdict)} | {count:,} |"
                  for (name, verdict), count in sorted(card.verdicts.items())]  # fmt: skip
    lines += ["", "## Files", "", "| file | SHA-256 |", "|---|---|"]
    lines += [f"| {_cell(name)} | `{digest}` |" for name, digest in files.items()]
    return "\n".join(lines) + "\n"


def _against_commercial_use(card: Card) -> list[str]:
    forbidden = {licence: count for licence, count in card.by_licence().items() if commercial_use(licence)[0] is False}
    unclear = {licence: count for licence, count in card.by_licence().items() if commercial_use(licence)[0] is None}
    lines = [f"- {_cell(licence)} forbids it: {count:,} rows." for licence, count in forbidden.items()]
    lines += [f"- {_cell(licence)}: {count:,} rows of which it is not known." for licence, count in unclear.items()]
    if card.count("closed"):
        lines.append(f"- {card.count('closed'):,} rows hold text of closed models, whose terms may forbid to train on"
                     " it (`depthup data filter --exclude-closed` leaves them out).")  # fmt: skip
    if card.count("unknown"):
        lines.append(
            f"- Of {card.count('unknown'):,} rows it is not known who wrote them, or whether that model is open."
        )
    return ["Against commercial use:", "", *lines] if lines else ["Nothing in the ledger forbids commercial use."]


def _openness(generators: tuple[str, ...]) -> Openness:
    kinds = {kind_of(name) for name in generators if name != "model"}  # which, it does not tell
    order: tuple[Openness, ...] = ("closed", "unknown", "open", "rules", "human")
    return next((kind for kind in order if kind in kinds), UNKNOWN)


def kind_of(generator: str) -> Openness:
    """What is known of a writer by its name: ``unknown`` where no table has it."""
    if generator == "human":
        return "human"
    if re.match(r"factory\b", generator):
        return "rules"
    if closed_by(generator):
        return "closed"
    return "open" if OPEN.search(re.sub(r"[\s_]+", "-", generator.lower())) else UNKNOWN


def _verdicts(places: list[Mapping[str, Any]]) -> dict[str, str]:
    found = {}
    for place in places:
        for key in ("verdict", "verdicts", "filters"):
            value = place.get(key)
            if isinstance(value, Mapping):
                scalars = {
                    name: each for name, each in value.items() if isinstance(each, bool | str) and name != "answer"
                }
                if key == "verdict":
                    scalars = {f"answer {name}": each for name, each in scalars.items() if name in ("equal", "method")}
                found.update({str(name): str(each).lower() for name, each in scalars.items()})
    return found


def _first(places: list[Mapping[str, Any]], keys: tuple[str, ...]) -> str:
    return next(iter(_all(places, keys)), "")


def _all(places: list[Mapping[str, Any]], keys: tuple[str, ...]) -> list[str]:
    found = []
    for place in places:
        for key in keys:
            value = place.get(key)
            if isinstance(value, Mapping):
                value = value.get("id") or value.get("name") or value.get("model")
            if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
                found.append(str(value).strip())
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or " "
