"""The command line: each verb parses, calls one library function, and prints."""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .adopt_verb import add_adopt
from .audit_verb import add_audit
from .choose_verb import add_choose
from .compare_verb import add_compare
from .data_verb import add_data
from .decontaminate_verb import add_decontaminate
from .errors import DepthupError
from .evaluate_verb import add_evaluate
from .fit_verb import add_fit
from .gc_verb import add_gc
from .generate_verb import add_generate
from .layers import LayerPlan
from .membership_verb import add_membership
from .merge_verb import add_merge
from .plan_options import add_plan_options, chosen_plan, names_a_plan
from .plan_verb import add_plan
from .probe_verb import add_probe
from .recipe_verbs import add_report, add_run, add_status
from .recipe_verbs import add_verb as _verb
from .synthesize_verb import add_synthesize
from .training_verbs import add_preview, add_rates
from .why_verb import add_why

_OTHERS = (
    add_generate, add_merge, add_plan, add_run, add_status, add_report, add_evaluate, add_compare,
    add_preview, add_rates, add_synthesize, add_decontaminate, add_audit, add_data, add_membership,
    add_why, add_gc, add_adopt, add_probe, add_fit, add_choose,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 `check` found something, 2 bad input, 130 stopped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text, and not every terminal takes UTF-8
            stream.reconfigure(errors="backslashreplace")
    parser = make_parser()
    options = parser.parse_args(arguments)
    # A polite kill unwinds like Ctrl-C, so that partial folders are cleared.
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status: int = options.function(options) or 0
        return status
    except DepthupError as error:
        print(f"depthup: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"depthup: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("depthup: stopped; the same command goes on, or starts anew", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The whole command line; ``docs/cli.md`` is generated from it."""
    parser = argparse.ArgumentParser(
        prog="depthup",
        description="Make a trained language model deeper, train it on, measure it, and show the result.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="`depthup VERB --help` has examples. Bad input ends with status 2 and one message that says what to do.",
    )
    parser.add_argument("--version", action="version", version=f"depthup {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    own = (_add_upscale, _add_layers, _add_check, _add_import)
    for add in (*own, *_OTHERS):
        add(verbs)
    return parser


# -- upscale, layers --------------------------------------------------------------------------------------------------


def _add_upscale(verbs: Any) -> None:
    parser = _verb(verbs, "upscale", _upscale, "write a deeper checkpoint from a checkpoint and a plan", """
examples:
  depthup upscale mistral-7b solar-base --remove 8
  depthup upscale mistral-7b pro --preset 'llama-pro(8)'
  depthup upscale mistral-7b shallower --drop 20-27
  depthup upscale solar-base mistral-again --undo
  depthup upscale mistral-7b deeper --layers 0-23,8-31 --dry-run
  depthup upscale mistralai/Mistral-7B-v0.1 solar-base --preset solar
  depthup upscale https://models.example.org/mistral-7b solar-base --remove 8
  depthup upscale my-lora solar-lora --remove 8 --base-model solar-base     a PEFT adapter, by its model's plan
  depthup upscale mistral-7b pro --layers 0-15,15:identity,16-31,31:identity
  depthup upscale mistral-7b matched --layers 0-23,8-11:norm-matched,12-31 --calibration text.txt
A model that is not here streams through: the disk holds the target alone. Stopped or cut off, the same command goes on.
""")  # fmt: skip
    parser.add_argument(
        "base", metavar="BASE", help="checkpoint or adapter folder, a model on the hub as owner/name[@revision], or URL"
    )
    parser.add_argument("out", metavar="OUT", help="folder to make; it must not exist")
    add_plan_options(parser)
    parser.add_argument("--calibration", metavar="FILE", help="text (.txt, .jsonl) to measure norm-matched on")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, write nothing")
    parser.add_argument("--max-shard-gb", type=_positive, default=5.0, metavar="GB", help="size of output files (5)")
    parser.add_argument(
        "--link", action="store_true",
        help="hard-link files of the base all of whose tensors stay, instead of copying them: such a file is shared,"
        " and to edit it in place in one folder edits the other",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="keep what a killed run, or a stopped one with --resume, has written, once it is compared with the base",
    )  # fmt: skip
    parser.add_argument("--digests", action="store_true", help="SHA-256 of all files into depthup.json (slower)")
    _add_reading_options(parser)
    adapters = parser.add_argument_group("where BASE is an adapter")
    adapters.add_argument("--base-layers", type=int, metavar="N", help="depth of its model, if it cannot be told")
    adapters.add_argument("--base-model", metavar="NAME", help="the up-scaled model, for its base_model_name_or_path")


def _add_reading_options(parser: Any) -> None:
    parser.add_argument("--stack", metavar="PREFIX", help="which layers, where a model has several stacks")
    parser.add_argument(
        "--config-list", action="append", default=[], metavar="KEY=layers|keep",
        help="whether a list in config.json that depthup does not know has one value for each layer",
    )  # fmt: skip


def _upscale(options: argparse.Namespace) -> None:
    from .checkpoint.remote import find_base
    from .files import refuse_existing
    from .growth.adapters import is_adapter
    from .growth.surgery import publish_surgery

    out = Path(options.out)
    refuse_existing(out)
    found = find_base(options.base)
    if isinstance(found, Path) and is_adapter(found):
        _upscale_adapter(options, found, out)
        return
    surgery = _model_surgery(options, found)
    print(surgery.describe())
    if surgery.base.remote is not None:
        print(surgery.base.remote.describe())
    if options.link and not surgery.num_linked_bytes:
        print("linked      nothing: no file of the base keeps all its tensors under their names")
    if options.dry_run:
        print(f"dry run: {out} was not written")
        return
    num_base_bytes = 0 if surgery.base.remote else surgery.base.num_bytes  # what streams by is digested in any case
    num_digested = num_base_bytes + surgery.num_bytes if options.digests else 0
    with _bytes_bar(surgery.num_bytes + num_digested, "upscale") as advance:
        kept = publish_surgery(surgery, out, advance, resume=options.resume, digests=options.digests)
    if options.resume and surgery.base.remote is None:
        print(f"resumed: {len(kept)} of {len(surgery.shards)} files were whole and of this base and plan")
    print(f"written: {out}")


def _model_surgery(options: argparse.Namespace, found: Any) -> Any:
    from .checkpoint.names import find_stack
    from .checkpoint.remote import open_base, require_here
    from .errors import PlanError
    from .growth.surgery import plan_surgery

    if options.base_layers is not None or options.base_model is not None:
        raise PlanError(f"{options.base} is no adapter", next_step="leave out --base-layers and --base-model")
    base = open_base(found)
    stack = find_stack(base.tensors, base.config, options.stack)
    if options.calibration is not None:
        require_here(base, "norms are measured by running it")
    plan = chosen_plan(options, stack.num_layers, base.folder, stack.prefix)
    return plan_surgery(
        base,
        plan if options.calibration is None else _measured(plan, options, base.folder),
        stack=stack,
        config_lists=_config_lists(options.config_list),
        max_shard_bytes=int(options.max_shard_gb * 1e9),
        link=options.link,
    )


def _upscale_adapter(options: argparse.Namespace, folder: Path, out: Path) -> None:
    from .errors import PlanError
    from .growth.adapters import adapter_stack, open_adapter, plan_adapter, publish_adapter

    if options.link or options.resume or options.digests:
        raise PlanError(f"{folder} is an adapter", next_step="leave out --link, --resume and --digests")
    adapter = open_adapter(folder)
    stack = adapter_stack(adapter, options.base_layers, options.stack)
    plan = chosen_plan(options, stack.num_layers, folder, stack.prefix)
    surgery = plan_adapter(adapter, stack, plan, options.base_model)
    print(surgery.describe())
    if options.dry_run:
        print(f"dry run: {out} was not written")
        return
    with _bytes_bar(surgery.num_bytes, "upscale") as advance:
        publish_adapter(surgery, out, advance)
    print(f"written: {out}")


def _measured(plan: LayerPlan, options: argparse.Namespace, base: Path) -> LayerPlan:
    from .data.sources import Files
    from .growth.norms import measure_norms
    from .models import resolve_device

    texts = (document.text for document in Files((options.calibration,)).documents())
    return measure_norms(base, plan, texts, stack=options.stack, device=resolve_device("auto"))


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _config_lists(pairs: Sequence[str]) -> dict[str, str]:
    return dict(pair.partition("=")[::2] for pair in pairs)


def _add_layers(verbs: Any) -> None:
    parser = _verb(verbs, "layers", _layers, "show a plan: the map, the seam, parameters and bytes", """
examples:
  depthup layers --base-layers 32 --remove 8
  depthup layers --shape mistral-7b --preset solar
  depthup layers path/to/checkpoint --target-layers 44
  depthup layers mistralai/Mistral-7B-v0.1 --remove 8     config and headers are fetched, no weights
  depthup layers mistral-7b --preset llama-pro --to-mergekit > llama-pro.yaml
What it takes to train the target (memory, hours, cost) is told by `depthup plan`.
""")  # fmt: skip
    from .costs import SHAPES

    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="folder with config.json (weights or not), a model on the hub as owner/name[@revision], or URL",
    )
    parser.add_argument("--base-layers", type=int, metavar="N", help="depth of the base, instead of a checkpoint")
    parser.add_argument("--shape", metavar="NAME", help=f"a published shape: {', '.join(SHAPES)}")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--to-mergekit", action="store_true", help="print the plan as a passthrough YAML of mergekit")
    parser.add_argument("--model", metavar="NAME", help="the model that the YAML names (CHECKPOINT)")
    add_plan_options(parser)


def _layers(options: argparse.Namespace) -> None:
    import json

    from .checkpoint.remote import open_base
    from .costs import base_costs

    base = open_base(options.checkpoint, only_look=True) if options.checkpoint else None
    costs = base_costs(base, options.base_layers, options.shape)
    folder = base.folder if base else None
    plan = chosen_plan(options, costs.num_layers, folder)
    if options.json:
        print(json.dumps(plan.to_json()))
        return
    if options.to_mergekit:
        from .growth.mergekit import tensor_names, to_mergekit

        names = tensor_names(costs.num_layers, folder)
        print(to_mergekit(plan, options.model or options.checkpoint or "BASE", names), end="")
        return
    print(plan.render())
    print(costs.describe(plan))


# -- check, import, generate ------------------------------------------------------------------------------------------


def _add_check(verbs: Any) -> None:
    parser = _verb(verbs, "check", _check, "tell whether a checkpoint is whole and consistent", """
examples:
  depthup check solar-base
  depthup check solar-base --quick                               from names and shapes, in a second
  depthup check solar-base --against mistral-7b
  depthup check merged --against mistral-7b --layers 0-23,8-31     what another tool made
exit status: 0 nothing found, 1 something found
""")  # fmt: skip
    parser.add_argument("folder", metavar="DIR", help="checkpoint folder, or a model on the hub")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only look: do not load it with transformers, on the meta device (nor with --against)",
    )
    parser.add_argument(
        "--against", metavar="BASE",
        help="also prove that it was made from this base: each tensor byte for byte, the config, the files beside",
    )  # fmt: skip
    _add_reading_options(parser)
    add_plan_options(parser, "the plan, for --against where DIR has no depthup.json that states it, one of")


def _check(options: argparse.Namespace) -> int:
    from .checkpoint.check import check_checkpoint
    from .checkpoint.remote import local_folder
    from .errors import CheckpointError

    if not options.against and names_a_plan(options):
        raise CheckpointError("a plan is named, and no base to compare with", next_step="add --against BASE")
    folder = local_folder(options.folder)
    findings, loads = check_checkpoint(folder), ""
    loading = not (options.quick or options.against)  # byte by byte against the base says more
    if loading and all(finding.guessed for finding in findings):
        from .models import UnknownModel, findings_on_loading

        try:
            on_loading = findings_on_loading(folder)
            findings, loads = (findings or on_loading) if on_loading else [], ", and it loads"
        except UnknownModel as error:
            loads = f"; not loaded: {error.problem}"
    for finding in findings:
        print(finding)
    if findings:
        return 1
    print(f"{options.folder}: whole and consistent{loads}")
    return _check_against(options, folder) if options.against else 0


def _check_against(options: argparse.Namespace, folder: Path) -> int:
    from tqdm import tqdm

    from .checkpoint.remote import local_folder
    from .growth.proof import derive_surgery, prove

    base = local_folder(options.against)
    named = (lambda depth: chosen_plan(options, depth, base, options.stack)) if names_a_plan(options) else None
    surgery = derive_surgery(folder, base, named, options.stack, _config_lists(options.config_list))
    print(f"plan {surgery.plan.text}")
    with _bytes_bar(surgery.num_bytes, "compare") as advance:
        proof = prove(surgery, folder, tell=lambda finding: tqdm.write(finding.problem), progress=advance)
    print(proof.describe())
    return 1 if proof.findings else 0


def _add_import(verbs: Any) -> None:
    parser = _verb(verbs, "import", _import, "make a checkpoint folder of a GGUF file, or of pickle weights", """
examples:
  depthup import SmolLM2-135M-Instruct.Q4_1.gguf smollm2
  depthup import model.gguf model --dtype bfloat16
  depthup import old-checkpoint new-checkpoint     pytorch_model.bin -> safetensors, no code is run
""")  # fmt: skip
    parser.add_argument("source", metavar="SOURCE", help="GGUF file, or folder with pytorch_model*.bin")
    parser.add_argument("out", metavar="OUT", help="folder to make; it must not exist")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="type of weights from GGUF; auto (default) is the narrowest that holds every value exactly",
    )  # fmt: skip


def _import(options: argparse.Namespace) -> None:
    from .files import refuse_existing

    refuse_existing(Path(options.out))
    if Path(options.source).is_dir():
        from .conversion.pickles import import_pickles

        print(f"{import_pickles(options.source, options.out)} tensors written: {options.out}")
    else:
        from .conversion.gguf import import_gguf

        print(f"written as {import_gguf(options.source, options.out, options.dtype)}: {options.out}")


@contextlib.contextmanager
def _bytes_bar(total: int, label: str) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=None, dynamic_ncols=True) as bar:
        yield bar.update
