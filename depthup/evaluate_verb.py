"""The verb that scores models on benchmarks, and shows what they answered."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from .errors import DataError, DepthupError, OutputError
from .recipe_verbs import add_verb


def add_evaluate(verbs: Any) -> None:
    """`depthup evaluate`."""
    parser = add_verb(verbs, "evaluate", _evaluate, "score models on benchmarks, with error bars", """
examples:
  depthup evaluate base target --suite quick                        a sample of the six leaderboard tasks
  depthup evaluate solar --suite h6 --profile leaderboard-v1        all items, as the SOLAR paper's scores were made
  depthup evaluate base target --data-dir data --limit 100          no network: docs/benchmark-data.md has the layout
  depthup evaluate chat --tasks gsm8k,ifeval --chat-template        any task of lm-eval by name
  depthup evaluate tiny target --suite bpb                          bits per byte, for models too small for accuracy
  depthup evaluate base target --text held-out.jsonl                bits per byte of a text
  depthup evaluate solar --suite h6 --backend http://host:8000/v1   a server writes the text (GSM8K), the rest is here
  depthup evaluate --show 5 --task gsm8k --wrong                    look at what was answered
Answers are kept by model and prompt: stopped, the same command goes on; asked again, it only looks them up.
""")  # fmt: skip
    parser.add_argument("models", metavar="MODEL", nargs="*", help="checkpoint folder, or a model on the hub")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--suite", metavar="NAME", help="h6, quick, bpb (h6, unless --tasks or --text is given)")
    asked.add_argument("--tasks", "--task", metavar="A,B", help="single tasks or groups of lm-eval by name")
    asked.add_argument("--text", metavar="FILE", nargs="+", default=[], help="held-out text: .txt, .jsonl, .parquet")
    asked.add_argument("--profile", default="harness-0.4", metavar="NAME", help="harness-0.4 (default), leaderboard-v1")
    asked.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    asked.add_argument("--sample", type=int, metavar="N", help="only N items of each task, drawn with --seed")
    asked.add_argument("--seed", type=int, default=0, help="of draws of items (0)")
    asked.add_argument("--data-dir", metavar="DIR", help="benchmarks in a folder (else from the Hugging Face Hub)")
    asked.add_argument("--chat-template", action="store_true", help="put prompts into the model's chat template")
    asked.add_argument(
        "--fewshot-as-one-turn", action="store_true", help="with --chat-template: examples in the one user turn"
    )
    place = parser.add_argument_group("where it is computed")
    place.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1")
    place.add_argument("--devices", metavar="A,B", help="several, each with a copy of the model: cuda:0,cuda:1")
    place.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
                       help="type of the weights (bfloat16 on a GPU, float32 on a CPU)")  # fmt: skip
    place.add_argument("--max-length", type=int, metavar="N", help="tokens read at once (what the model states)")
    place.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of a pass (fitted to memory)")
    place.add_argument(
        "--backend", metavar="SPEC", help="what writes text: http://host:8000/v1#MODEL (docs/generation.md)"
    )
    out = parser.add_argument_group("what is kept")
    out.add_argument("--out", default="evaluations", metavar="DIR", help="results and samples (./evaluations)")
    out.add_argument("--cache", metavar="DIR", help="known answers (DIR of --out, /answers)")
    out.add_argument("--no-cache", action="store_true", help="ask everything anew, keep no answer")
    out.add_argument("--card", metavar="DIR", help="also write .eval_results/ and the front matter of README.md there")
    out.add_argument("--figure", metavar="FILE.svg", help="also draw the scores with their intervals there")
    show = parser.add_argument_group("look at items")
    show.add_argument("--show", type=int, metavar="N", help="print N items of --task of the models (of all in --out)")
    show.add_argument("--wrong", action="store_true", help="only such as were answered wrong")
    show.add_argument("--right", action="store_true", help="only such as were answered right")
    show.add_argument("--whole", action="store_true", help="with the examples before the question")


def _evaluate(options: argparse.Namespace) -> None:
    _check(options)
    if options.models:
        _run(options)
    if options.show is not None:
        _show(options)


def _check(options: argparse.Namespace) -> None:
    from .evaluation.suites import find_profile, find_suite

    if not options.models and options.show is None:
        raise DepthupError("no model is given", next_step="name one, or look at items with --show N --task NAME")
    alone = [f"--{name}" for name in ("wrong", "right", "whole") if getattr(options, name)]
    if options.show is None and alone:
        raise DepthupError(
            f"{' and '.join(alone)} without --show",
            next_step="say how many items of which task, as in --show 5 --task gsm8k --wrong",
        )
    if options.show is not None and (not options.tasks or options.show < 1):
        raise DepthupError("--show needs a number of items and their --task", allowed="--show 5 --task gsm8k")
    if options.suite and options.tasks:
        raise DepthupError("--suite and --tasks are both given", allowed="one of them")
    if options.fewshot_as_one_turn and not options.chat_template:
        raise DepthupError("--fewshot-as-one-turn without --chat-template", next_step="add --chat-template")
    for name in ("max_length", "batch_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DepthupError(
                f"--{name.replace('_', '-')} is {value}", allowed="1 or more, or nothing for what fits the model"
            )
    if options.suite:
        find_suite(options.suite)
    find_profile(options.profile)


def _require_writable(folder: Path) -> None:
    """Hours of computing should not end at a folder that takes no file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise OutputError(f"nothing can be written in {folder}: {reason}", next_step="choose another folder with --out")


def _run(options: argparse.Namespace) -> None:
    from .artifacts.fingerprint import Digests
    from .checkpoint.remote import local_folder
    from .report.scores import score_board

    folders = [local_folder(model) for model in options.models]
    _require_writable(Path(options.out))
    digests = Digests(Path(options.cache or Path(options.out) / "answers") / "digests.json")
    reader = _reader(options, digests)
    from .evaluation.results import write_results

    found = []
    for name, folder in zip(options.models, folders, strict=True):
        print(f"── {name}", file=sys.stderr)
        scores, samples = reader.read(name, folder, digests.of_checkpoint(folder))
        path = write_results(options.out, scores, samples)
        print(f"   {scores.seconds:.0f} s, {path}", file=sys.stderr)
        found.append(scores)
    print(_table(score_board(found)))
    if len(found) > 1:
        from .evaluation.compare import compare
        from .report.comparison import comparison_text

        try:
            print(f"\n{comparison_text(compare(found, seed=options.seed))}")
        except DataError as error:  # a single item, for one: the scores stand all the same
            print(f"note: not compared: {error.problem}")
    if options.card:
        for scores in found:
            _write_card(Path(options.card), scores, single=len(found) == 1)
    if options.figure:
        from .report.score_bars import write_score_bars

        write_score_bars(Path(options.figure), found)


def _generator(spec: str, device: str, digests: Any) -> tuple[str, Any]:
    """What writes text, and its name, which says what model that is: a server or a folder may come to hold another."""
    from .evaluation.backend_scorer import BackendScorer
    from .generation.backend import open_backend

    backend = open_backend(spec, device=device)
    kind, _, folder = spec.partition(":")
    name = f"{spec} {backend.identity}"
    return f"{name} {digests.of_checkpoint(Path(folder))}" if kind == "local" else name, BackendScorer(backend)


def _reader(options: argparse.Namespace, digests: Any) -> Any:
    from .evaluation.run import Place, Questions, Reader
    from .models import resolve_device

    asked: Any = options.suite or (options.tasks.split(",") if options.tasks else "" if options.text else "h6")
    questions = Questions(
        asked, options.profile, Path(options.data_dir) if options.data_dir else None, options.limit, options.sample,
        options.seed, options.chat_template, not options.fewshot_as_one_turn, tuple(options.text),
    )  # fmt: skip
    devices = tuple(options.devices.split(",")) if options.devices else ()
    device = resolve_device(devices[0] if devices else options.device)
    dtype = ("float32" if device == "cpu" else "bfloat16") if options.dtype == "auto" else options.dtype
    place = Place(device, dtype, devices, options.max_length, options.batch_tokens, sys.stderr.isatty())
    cache = None if options.no_cache else Path(options.cache or Path(options.out) / "answers")
    generator = None
    if options.backend:
        generator = _generator(options.backend, device, digests)

    def report(task: str, num_requests: int) -> None:
        print(f"   {task}: {num_requests:,} requests", file=sys.stderr, flush=True)

    return Reader(questions, place, cache, generator, report)


def _table(board: Any) -> str:
    """Scores with half their intervals, a column a model, a row a task."""
    from .report.scores import with_margin
    from .report.tables import render_table

    rows = [
        [column.title, column.detail, *(with_margin(cells[index], column.in_points) for cells in board.cells)]
        for index, column in enumerate(board.columns)
    ]
    rows = rows[board.num_means :] + rows[: board.num_means]
    notes = [f"note: {note}" for note in board.notes]
    unit = ": points" if any(column.in_points for column in board.columns) else ""
    return "\n".join([
        f"{', '.join(board.profiles)}{unit}, ± half of a 95 % interval", "",
        render_table(["", "", *board.names], rows), *notes,
    ])  # fmt: skip


def _write_card(folder: Path, scores: Any, single: bool) -> None:
    from .evaluation.results_form import folder_name
    from .files import write_text
    from .report.card import with_model_index, write_eval_results

    place = folder if single else folder / folder_name(scores.model)
    write_eval_results(place, scores)
    readme = place / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else f"# {Path(scores.model).name}\n"
    write_text(readme, with_model_index(text, scores))


def _show(options: argparse.Namespace) -> None:
    from .evaluation.results import find_results, read_samples
    from .evaluation.results_form import folder_name
    from .evaluation.show import chosen_samples, show_sample

    out = Path(options.out)
    places = [out / folder_name(model) for model in options.models] or sorted(
        {path.parent for path in out.glob("*/results_*.json")}
    )
    if not places:
        raise DataError(f"{out} holds no results", next_step="evaluate first, or name the folder with --out")
    only = "wrong" if options.wrong and not options.right else "right" if options.right and not options.wrong else "all"
    for place in places:
        for task in options.tasks.split(","):
            samples = read_samples(find_results(place), task)
            shown = chosen_samples(samples, options.show, only)
            print(f"══ {place.name}: {len(shown)} of {len(samples)} items of {task}")
            for sample in shown:
                print(f"\n{show_sample(sample, color=sys.stdout.isatty(), whole=options.whole)}")
