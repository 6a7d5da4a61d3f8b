"""What to cite: depthup, and the papers whose methods stand in a lineage, as BibTeX."""

from __future__ import annotations

from collections.abc import Sequence

from ..artifacts.record import Record

# Kind of a stage -> key, title, authors, year, arXiv number of the method that it follows.
_PAPERS: dict[str, tuple[str, str, str, int, str]] = {
    "upscale": (
        "kim2023solar",
        "{SOLAR} 10.7{B}: Scaling Large Language Models with Simple yet Effective Depth Up-Scaling",
        "Kim, Dahyun and Park, Chanjun and Kim, Sanghoon and Lee, Wonsung and others", 2023, "2312.15166",
    ),
    "synthesize": (
        "yu2023metamath", "{MetaMath}: Bootstrap Your Own Mathematical Questions for Large Language Models",
        "Yu, Longhui and others", 2023, "2309.12284",
    ),
    "dpo": (
        "rafailov2023dpo",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafailov, Rafael and others", 2023, "2305.18290",
    ),
    "sdpo": (
        "kim2024sdpo", "{sDPO}: Don't Use Your Data All at Once", "Kim, Dahyun and others", 2024, "2403.19270",
    ),
}  # fmt: skip


def bibtex(shown: Sequence[Record], version: str) -> str:
    """Entries for this version of depthup and for each paper that a stage follows, the paper of the method first."""
    kinds = {one.kind for one in shown}
    entries = [_paper(*_PAPERS[kind]) for kind in _PAPERS if kind in kinds]
    software = [
        "@software{depthup,", "  title = {depthup: make a trained language model deeper},",
        "  author = {{The depthup maintainers}},", f"  version = {{{version}}},", "  license = {Apache-2.0}", "}",
    ]  # fmt: skip
    return "\n\n".join([*entries, "\n".join(software)])


def _paper(key: str, title: str, authors: str, year: int, number: str) -> str:
    return "\n".join([
        f"@misc{{{key},", f"  title = {{{title}}},", f"  author = {{{authors}}},", f"  year = {{{year}}},",
        f"  eprint = {{{number}}},", "  archivePrefix = {arXiv}", "}",
    ])  # fmt: skip
