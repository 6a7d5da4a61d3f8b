"""The verb that looks into a model: which layers are alike, and what each plan costs before any training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .recipe_verbs import add_verb


def add_probe(verbs: Any) -> None:
    """`depthup probe`."""
    parser = add_verb(verbs, "probe", _probe, "show which layers are alike, and what plans cost before training", """
examples:
  depthup probe smollm2 --out probe                                    on the documentation that Python carries
  depthup probe smollm2 --text wiki.jsonl.gz --text code.txt --out probe
  depthup probe smollm2 --try 'rys(10,17)' --try 0-9,5-29 --no-maps --out probe     some plans, in a minute or two
  depthup probe smollm2 --trained runs/smol/dus-cpt/latest --out probe   before and after training
  depthup probe smollm2 --stride 1 --map-tokens 2048 --out probe       every run of layers: an hour on a CPU
Writes probe.json and figures (SVG): similarity of layers, logit lens, loss of depth up-scaling with every m, of runs of
layers left out or doubled. No checkpoint is written: plans are run with the base's own layers. Stopped, the same
command goes on. docs/probe.md tells how to read it.
""")  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, or a model on the hub")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make; it must not exist")
    parser.add_argument(
        "--text", metavar="FILE", action="append", default=[], help="text (.txt, .jsonl, .parquet, plain or .gz); may"
        " be given again (the documentation that Python carries)",
    )  # fmt: skip
    parser.add_argument("--field", default="text", metavar="KEY", help="where a row of JSON has its text (text)")
    parser.add_argument("--tokens", type=_count, default=2048, metavar="N", help="of text that are used (2048)")
    parser.add_argument("--row-tokens", type=_count, default=256, metavar="N", help="tokens in a row (256)")
    parser.add_argument("--map-tokens", type=_count, default=1024, metavar="N", help="of them for the maps (1024)")
    parser.add_argument(
        "--stride", type=_count, metavar="K", help="maps: runs begin and end at each K-th layer (n/16, rounded up)"
    )
    parser.add_argument("--no-maps", action="store_true", help="leave the maps out, which take most of the time")
    parser.add_argument(
        "--try", action="append", default=[], dest="tried", metavar="PLAN", help="a plan, as 0-23,8-31 or a preset;"
        " may be given again",
    )  # fmt: skip
    parser.add_argument("--trained", metavar="DIR", help="a trained target of MODEL, to be seen before and after")
    parser.add_argument("--trained-plan", metavar="PLAN", help="the plan that made it, where its folder does not tell")
    parser.add_argument("--stack", metavar="PREFIX", help="the layers, where the model has several stacks")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(float32)")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1")


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 0 < value < 10**9:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _probe(options: argparse.Namespace) -> None:
    from .checkpoint.remote import local_folder
    from .data.sources import Files, InstalledDocs
    from .errors import DepthupError
    from .files import publishing, refuse_existing
    from .models import resolve_device
    from .probe_stage import probe_folder, write_probe

    out, row = Path(options.out), options.row_tokens
    refuse_existing(out)
    if min(options.tokens, options.map_tokens) < 2 * row:
        raise DepthupError(
            f"{min(options.tokens, options.map_tokens)} tokens are fewer than two rows of {row}",
            next_step="raise --tokens and --map-tokens, or lower --row-tokens",
        )
    sources: list[Any] = [Files((path,), options.field) for path in options.text] or [InstalledDocs(("python",))]
    with publishing(out, keep_partial=True) as folder:
        found = probe_folder(
            local_folder(options.model),
            [(one.text for one in source.documents()) for source in sources],
            folder,
            rows=(options.tokens // row, row),
            wanted={
                "maps": not options.no_maps,
                "map_rows": options.map_tokens // row,
                "stride": options.stride,
                "stack": options.stack,
            },
            tried=options.tried,
            trained=Path(options.trained) if options.trained else None,
            trained_plan=options.trained_plan,
            device=resolve_device(options.device),
            dtype=options.dtype,
            progress=True,
        )
        texts = [Path(path).name for path in options.text] or ["pydoc_data.topics"]
        figures = write_probe(folder, {**found, "texts": texts})
    print(probe_text(found))
    print(f"\n{out}: probe.json, {', '.join(figures)}")


def probe_text(found: Mapping[str, Any]) -> str:
    """The short table: loss by m, the most redundant layers, the best run to double, and the seams after training."""
    base = found["base"]
    lines = [f"base: {base['loss']:.3f} ± {base['standard_error']:.3f} nats a token", ""]
    lines.append("   m  layers   loss  above base   seam  angle  RMS ratio")
    for one in found["upscale"]:
        [seam] = one["seams"]
        meets = f"{seam['below']}|{seam['above']}"
        lines.append(
            f"{one['num_removed']:4}  {one['num_target_layers']:6}  {one['loss']:5.3f}  {one['difference']:+10.3f}"
            f"  {meets:>5}  {seam['angular_distance']:5.3f}  {seam['rms_ratio']:9.2f}"
        )
    best = min(found["upscale"], key=lambda one: one["loss"])
    lines += ["", f"best m before training: {best['num_removed']}, {best['difference']:+.3f} nats"]
    lines += [
        f"tried {one['name']}: {one['num_target_layers']} layers, {one['difference']:+.3f}"
        f" ± {one['difference_error']:.3f}"
        for one in found["tried"]
    ]
    worth = {layer: one[0] for layer, one in enumerate(found["without_layer"]) if one is not None}
    least = sorted(worth, key=lambda layer: worth[layer])[:3]
    told = ", ".join(f"{layer} ({worth[layer]:+.3f})" for layer in least)
    lines.append(f"most redundant layers: {told or 'none can be left out'} nats without it")
    for kind, word in (("duplicate", "double"), ("drop", "leave out")):
        cells = [cell for cell in found["maps"].get(kind, {}).get("cells", []) if cell[1] - cell[0] > 1]
        if cells:
            i, j, _, difference, error = min(cells, key=lambda cell: cell[3])
            lines.append(f"best run of two or more to {word}: {i}-{j - 1}, {difference:+.3f} ± {error:.3f}")
    if trained := found.get("trained"):
        lines += ["", *_trained_lines(trained)]
    return "\n".join(lines)


def _trained_lines(trained: Mapping[str, Any]) -> list[str]:
    before, after = trained["before"], trained["after"]
    lines = [f"trained {trained['layers']}: {before['difference']:+.3f} before, {after['difference']:+.3f} after"]
    lines += [
        f"  seam {one['below']}|{one['above']}: angle {one['angular_distance']:.3f} -> {two['angular_distance']:.3f},"
        f" RMS ratio {one['rms_ratio']:.2f} -> {two['rms_ratio']:.2f}"
        for one, two in zip(before["seams"], after["seams"], strict=True)
    ]
    for copies in ("first", "second"):
        if (here := before[f"without_{copies}_copies"]) and (now := after[f"without_{copies}_copies"]):
            lines.append(f"  without the {copies} copies: {here[0]:+.3f} -> {now[0]:+.3f}")
    return lines
