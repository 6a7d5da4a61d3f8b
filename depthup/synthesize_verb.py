"""The verb that makes synthetic data from seeds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipe_verbs import add_verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from .generation.backend import Backend
    from .synthesis.asking import FactoryAsker
    from .synthesis.pipeline import Gate
    from .synthesis.seeds import Refused, Seed
    from .synthesis.settings import Settings

FACTORY = "factory"


def add_synthesize(verbs: Any) -> None:
    """`depthup synthesize` and what it makes."""
    from .synthesize_alignment_verb import add_alignment

    summary = "make synthetic data: math problems with solutions, and preference pairs of them"
    parser = add_verb(verbs, "synthesize", _synthesize, summary, """
examples:
  depthup synthesize math --help
  depthup synthesize alignment --help
""")  # fmt: skip
    kinds = parser.add_subparsers(title="what is made", metavar="WHAT", required=True)
    _add_math(kinds)
    add_alignment(kinds)


def _add_math(kinds: Any) -> None:
    parser = add_verb(kinds, "math", _synthesize, "make verified math problems and solutions from seeds", """
examples:
  depthup synthesize math --seeds math/train.jsonl.gz --backend http://localhost:8000/v1 --out synth
  depthup synthesize math --seeds math/train.jsonl.gz --backend local:checkpoint --out synth --max-seeds 100
  depthup synthesize math --seeds factory:1000 --backend factory --out synth          no network, no model
  depthup synthesize math --seeds math/train.jsonl.gz --backend https://api.example.org/v1#model --out synth \\
      --price-in 0.15 --price-out 0.6 --max-cost 20 --requests-per-minute 500
  depthup synthesize math --seeds mine.jsonl --kinds answer,rephrase --keep rephrase=4 --backend factory \\
      --out synth --dry-run
Stopped, killed or out of budget, the same command goes on, asks nothing twice, and gives the same files.
DIR receives rows-*.jsonl (prompt, response, lineage: SFT reads them), rejected.jsonl with reasons, failed.jsonl,
manifest.json. docs/synthesis.md has the filters and what they cost.
""")  # fmt: skip
    parser.add_argument(
        "--seeds", required=True, nargs="+", metavar="FILE",
        help="JSON lines with problem and solution, or question and answer; factory:N or reasoning-gym:N makes N",
    )  # fmt: skip
    parser.add_argument(
        "--backend", required=True, metavar="SPEC",
        help="http://HOST/v1#MODEL, local:CHECKPOINT, factory (rules alone), or a name that a package adds",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run; it is made, or gone on with")
    parser.add_argument("--dry-run", action="store_true", help="print requests, tokens and cost at most; ask nothing")
    _add_what(parser)
    _add_how(parser)


def _add_what(parser: Any) -> None:
    made = parser.add_argument_group("what is made")
    made.add_argument(
        "--kinds", default="answer,rephrase,self-verification,fobar", metavar="KIND,...",
        help="augmentations (all four: answer,rephrase,self-verification,fobar)",
    )  # fmt: skip
    made.add_argument("--ask", action="append", default=[], metavar="KIND=N", help="rewritings, or answers, for a seed")
    made.add_argument("--keep", action="append", default=[], metavar="KIND=N", help="rows kept for a seed")
    made.add_argument("--max-rows", action="append", default=[], metavar="KIND=N", help="rows of a kind in all")
    made.add_argument("--max-seeds", type=_count, metavar="N", help="take the first N seeds")
    made.add_argument("--samples", type=_count, default=2, metavar="K", help="solutions that vote on a rewriting (2)")
    made.add_argument("--min-agreement", type=float, default=0.5, metavar="SHARE", help="of them, at gold (0.5)")
    made.add_argument(
        "--near-duplicate", type=float, default=0.8, metavar="SHARE", help="overlap that is too much (0.8)"
    )
    made.add_argument("--allow-gsm8k", action="store_true", help="take GSM8K's training rows as seeds too")
    made.add_argument("--licence", metavar="NAME", help="of seeds that do not state theirs")
    made.add_argument(
        "--against", metavar="NAMES", help="hold back rows that hit these test sets, as `depthup decontaminate` finds"
        " them: h6, or gsm8k,math, ...",
    )  # fmt: skip
    made.add_argument("--data-dir", default="data", metavar="DIR", help="where these test sets lie (data)")
    made.add_argument(
        "--rules", default="exact,ngram", metavar="NAMES",
        help="of `depthup decontaminate`, for --against (exact,ngram; the others take much of MATH for its test set)",
    )  # fmt: skip
    made.add_argument("--no-symbolic", action="store_true", help="compare answers without math-verify")


def _add_how(parser: Any) -> None:
    how = parser.add_argument_group("how it is asked")
    how.add_argument("--retry-failed", action="store_true", help="ask again what failed for good (failed.jsonl)")
    how.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0.7, as MetaMath")
    how.add_argument("--top-p", type=float, default=1.0, metavar="P", help="share of probability to draw from (1)")
    how.add_argument("--max-new-tokens", type=_count, default=512, metavar="N", help="longest reply (512)")
    how.add_argument("--seed", type=int, default=0, help="of all random numbers (0)")
    how.add_argument("--group", type=_count, default=64, metavar="N", help="seeds worked on at once (64)")
    how.add_argument("--chat", action="store_true", help="ask through the model's chat template")
    how.add_argument("--device", default="auto", help="of a local model: auto (default), cpu, cuda, cuda:1")
    how.add_argument("--concurrency", type=_count, default=16, metavar="N", help="requests at a server at once (16)")
    how.add_argument("--requests-per-minute", type=float, metavar="N", help="most in any minute")
    how.add_argument("--tokens-per-minute", type=float, metavar="N", help="most in any minute, read and made")
    how.add_argument("--price-in", type=float, default=0.0, metavar="PRICE", help="of a million tokens read")
    how.add_argument("--price-out", type=float, default=0.0, metavar="PRICE", help="of a million tokens made")
    how.add_argument("--max-cost", type=float, metavar="COST", help="stop before so much is spent")
    how.add_argument("--max-tokens", type=_count, metavar="N", help="stop before so many tokens, read and made")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:13]) < 10**12:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 up")
    return int(text)


def _synthesize(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .synthesis.pipeline import estimate, synthesize
    from .synthesis.verify import Verifier

    settings = _settings(options)
    seeds, refused = _seeds(options)
    planned = estimate(seeds, settings)
    print(_plan(options, len(seeds), refused, planned))
    if options.dry_run:
        print(f"dry run: nothing was asked, {options.out} was not written")
        return 0
    verifier = Verifier(symbolic=not options.no_symbolic)
    gate, gate_name = _gate(options)
    backend = _backend(options)
    total = sum(planned.num_requests.values())
    with tqdm(total=total, desc="synthesize", unit=" requests", disable=None, dynamic_ncols=True) as bar:
        manifest = synthesize(
            seeds,
            backend,
            Path(options.out),
            settings,
            gate=gate,
            gate_name=gate_name,
            refused=refused,
            verifier=verifier,
            progress=bar.update,
            retry_failed=options.retry_failed,
        )
    print(_outcome(options.out, manifest))
    return 0 if manifest["statistics"]["kept"] else 1


def _settings(options: argparse.Namespace) -> Settings:
    from .errors import DataError, nearest
    from .synthesis.metamath import KINDS, Kind
    from .synthesis.settings import Quota, Settings

    quotas: dict[Kind, Quota] = dict(Settings().quotas)
    named = [kind for kind in options.kinds.split(",") if kind]
    numbers = {name: _numbers(name, getattr(options, name.replace("-", "_"))) for name in ("ask", "keep", "max-rows")}
    for kind in [*named, *(kind for each in numbers.values() for kind in each)]:
        if kind not in KINDS:
            raise DataError(f"no augmentation is called '{kind}'{nearest(kind, KINDS)}", allowed=", ".join(KINDS))
    chosen = {
        kind: Quota(
            max(numbers["ask"].get(kind, quotas[kind].asked), numbers["keep"].get(kind, 0)),
            numbers["keep"].get(kind, quotas[kind].kept), numbers["max-rows"].get(kind),
        )
        for kind in KINDS if kind in named
    }  # fmt: skip
    return Settings(
        chosen, options.samples, options.min_agreement, options.temperature, options.top_p, options.max_new_tokens,
        options.near_duplicate, options.seed, options.group,
    )  # fmt: skip


def _numbers(name: str, texts: list[str]) -> dict[str, int]:
    from .errors import DataError

    found = {}
    for text in texts:
        kind, _, number = text.partition("=")
        if not number.isascii() or not number.isdigit() or not 0 < len(number) < 10:
            raise DataError(f"--{name} {text} gives no number", allowed=f"--{name} rephrase=4")
        found[kind] = int(number)
    return found


def _seeds(options: argparse.Namespace) -> tuple[list[Seed], Refused]:
    from .data.card import lineage_of
    from .errors import DataError
    from .synthesis.problems import parse_factory, problems_of
    from .synthesis.seeds import Refused, Seed, read_seeds

    specs = {text: parse_factory(text) for text in options.seeds}
    files = [text for text, spec in specs.items() if spec is None]
    seeds, refused = list[Seed](), Refused()
    if files:
        seeds, refused = read_seeds(
            files, allow_gsm8k=options.allow_gsm8k, licence=options.licence,
            writers=lambda row: lineage_of(row).generators,
        )  # fmt: skip
    for spec in specs.values():
        if spec is not None:
            seeds = seeds + problems_of(spec, options.seed)
    if len({seed.id for seed in seeds}) < len(seeds):
        raise DataError("two seeds have one id", next_step="give each file once")
    return seeds[: options.max_seeds], refused


def _backend(options: argparse.Namespace) -> Backend | FactoryAsker:
    if options.backend == FACTORY:
        from .synthesis.asking import FactoryAsker

        return FactoryAsker()
    if options.backend.startswith(("http://", "https://")):
        from .generation.limits import Budget, Limits
        from .generation.server import ServerBackend

        url, _, model = options.backend.partition("#")
        limits = Limits(options.concurrency, options.requests_per_minute, options.tokens_per_minute)
        return ServerBackend(url, model or None, chat=options.chat, limits=limits, budget=_budget(options, Budget))
    from .generation.backend import open_backend

    return open_backend(options.backend, device=options.device, chat=options.chat)


def _gate(options: argparse.Namespace) -> tuple[Gate | None, str]:
    """From a text to the test set that it hits; and which gate that is."""
    if not options.against:
        return None, ""
    from .data_stages import make_gate

    return make_gate(options.against, Path(options.data_dir), options.rules.split(","))


def _budget(options: argparse.Namespace, make: Callable[..., Any]) -> Any:
    return make(options.price_in, options.price_out, options.max_cost, options.max_tokens)


def _plan(options: argparse.Namespace, num_seeds: int, refused: Refused, planned: Any) -> str:
    lines = [f"{num_seeds:,} seeds"]
    lines += [f"  {count:,} rows are no seeds: {reason} (first: {refused.first[reason]})"
              for reason, count in refused.counts.items()]  # fmt: skip
    steps = ", ".join(f"{count:,} {step}" for step, count in planned.num_requests.items() if count)
    lines.append(f"at most {sum(planned.num_requests.values()):,} requests ({steps})")
    if options.backend != FACTORY:
        tokens = f"about {planned.prompt_tokens:,} tokens read, at most {planned.completion_tokens:,} made"
        if options.price_in or options.price_out:
            cost = (planned.prompt_tokens * options.price_in + planned.completion_tokens * options.price_out) / 1e6
            tokens += f"; at most {cost:,.2f} by the prices given"
        lines.append(tokens)
    return "\n".join(lines)


def _outcome(out: str, manifest: dict[str, Any]) -> str:
    from .report.tables import render_table

    figures = manifest["statistics"]
    reasons = sorted({reason for counts in figures["rejected"].values() for reason in counts})
    kinds = list(manifest["identity"]["settings"]["quotas"])
    rows = [
        [kind, str(figures["kept"].get(kind, 0)), *(str(figures["rejected"].get(kind, {}).get(reason, 0))
                                                   for reason in reasons), str(figures["failed"].get(kind, 0))]
        for kind in kinds
    ]  # fmt: skip
    table = render_table(["kind", "kept", *reasons, "failed"], rows)
    num_rows = sum(figures["kept"].values())
    ways = ", ".join(f"{count:,} {name}" for name, count in sorted(figures["methods"].items()))
    text = f"{table}\n{num_rows:,} rows in {out}; answers compared as: {ways or 'none'}"
    num_failed = sum(figures["failed"].values())
    if num_failed:
        text += f"\n{num_failed:,} requests failed: {out}/failed.jsonl; --retry-failed asks them again"
    return text
