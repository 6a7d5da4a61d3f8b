"""The verb that tells what a recipe takes before it is run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .recipe_verbs import add_verb

if TYPE_CHECKING:
    from .planning.estimate import Estimate
    from .planning.hardware import Cluster

_HEADERS = ("stage", "kind", "parameters", "tokens", "FLOPs", "GB a GPU", "fits", "tokens/s", "MFU %", "time", "cost")


def add_plan(verbs: Any) -> None:
    """`depthup plan`."""
    parser = add_verb(verbs, "plan", _plan, "tell what a recipe takes: memory, FLOPs, time and cost of each stage", """
examples:
  depthup plan recipes/quickstart --hardware cpu
  depthup plan my.yaml --hardware 8xh100 --nodes 4
  depthup plan my.yaml --hardware 8xh100 --nodes 4 --mfu 0.4 --price 2.5 --json
  depthup plan my.yaml --hardware rtx4090            does it fit? if not, what to change
From configs alone: no weights are read, nothing is run. docs/plan.md has the formulas, and says what is assumed.
The other plan, which base layer each target layer starts from, is shown by `depthup layers`.
exit status: 0 every stage fits, 1 one does not
""")  # fmt: skip
    parser.add_argument("recipe", metavar="RECIPE", help="recipe.yaml, or the folder that it lies in")
    parser.add_argument(
        "--hardware", required=True, metavar="NAME",
        help="h100, h200, b200, a100-80gb, a100-40gb, l40s, rtx4090, rtx3090, mi300x; 8xh100 for 8 in a node; cpu for"
        " this machine",
    )  # fmt: skip
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of such nodes (1)")
    parser.add_argument("--mfu", type=_share, metavar="SHARE", help="model FLOPs utilisation, as in 0.4 (as measured)")
    parser.add_argument("--price", type=_above_0, metavar="DOLLARS", help="of one device for an hour (assumed)")
    parser.add_argument("--disk", type=_above_0, default=1.0, metavar="GB/S", help="speed of the store's disk (1)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, in bytes and seconds")


def _above_0(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0, up to 1")
    return value


def _plan(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from .planning.estimate import estimate
    from .planning.hardware import parse_hardware
    from .recipe import load_recipe
    from .workloads import workloads

    cluster = replace(parse_hardware(options.hardware, options.nodes, options.price), disk=options.disk * 1e9)
    recipe = load_recipe(options.recipe)
    found = [estimate(work, cluster, options.mfu) for work in workloads(recipe)]
    if options.json:
        import json

        print(json.dumps(_as_json(recipe.name, found, cluster), indent=2))
    else:
        print(_page(recipe.name, found, cluster, options))
    return 0 if all(one.fits for one in found) else 1


def _page(name: str, found: list[Estimate], cluster: Cluster, options: argparse.Namespace) -> str:
    from .planning.estimate import advice

    device = cluster.device
    price = f", ${device.price:,.2f} an hour each" if device.price else ""
    assumed = " (assumed)" if price and options.price is None else ""
    head = f"{name} on {cluster.describe()}: {device.peak / 1e12:,.4g} TFLOP/s each ({device.source}){price}{assumed}"
    lines = [head, "", _table(found, cluster)]
    trained = [one for one in found if one.work.trainable is not None]
    if trained:
        lines += ["", *_account(max(trained, key=lambda one: one.memory_bytes), cluster)]
    for one in found:
        lines += [f"{one.work.stage}: {note}" for note in one.notes]
    lines += _room(trained, cluster)
    kept = sum(one.work.kept_bytes for one in found)
    passing = max((_passing_bytes(one) for one in found), default=0)
    lines.append(f"disk: {_gb(kept)} GB stay; {_gb(kept + passing)} GB at most, while states are saved")
    lines.append(_assumptions(found, cluster, options))
    for one in found:
        lines += advice(one, device)
    return "\n".join(lines)


def _table(found: list[Estimate], cluster: Cluster) -> str:
    from .report.tables import render_table

    headers = [header.replace("GPU", "machine") if cluster.device.is_processor else header for header in _HEADERS]
    rows = [_cells(one, cluster) for one in found]
    seconds, dollars = sum(one.seconds for one in found), sum(one.dollars for one in found)
    total = ["all", "", "", "", _power(sum(one.flops for one in found)), "", "", "", "", _time(seconds)]
    rows.append([*total, _money(dollars, cluster)])
    for column in (-2, -1):  # they hold units, which the table takes for text
        width = max(len(row[column]) for row in rows)
        for row in rows:
            row[column] = row[column].rjust(width)
    return render_table(headers, rows)


def _cells(one: Estimate, cluster: Cluster) -> list[str]:
    work = one.work
    tokens = work.num_tokens or work.forward_tokens
    return [
        work.stage,
        work.kind,
        _short(work.shape.num_parameters) if work.shape else "",
        _short(tokens) if tokens else "",
        _power(one.flops),
        _gb(one.memory_bytes) if one.items else "",
        ("yes" if one.fits else "NO") if one.items else "",
        f"{one.tokens_per_second:,.0f}" if one.tokens_per_second else "",
        f"{100 * one.mfu:.1f}" if one.items else "",
        _time(one.seconds),
        _money(one.dollars, cluster),
    ]


def _account(one: Estimate, cluster: Cluster) -> list[str]:
    """The memory of one device, item by item."""
    from .report.tables import render_table

    work, what = one.work, "machine" if cluster.device.is_processor else "GPU"
    groups = cluster.num_devices // one.shards
    shared = f", states shared by {one.shards}" if one.shards > 1 else ""
    shared += f" and held {groups} times" if groups > 1 and one.shards > 1 else ""
    rows = [[item.name, _gb(item.num_bytes), item.how] for item in one.items]
    rows.append(["all", _gb(one.memory_bytes), f"of {_gb(one.capacity)} that can be used"])
    return [f"memory of a {what} in {work.stage}{shared}", render_table(["item", "GB", "counted as"], rows), ""]


def _room(trained: list[Estimate], cluster: Cluster) -> list[str]:
    """Where a stage fits: what would fit as well."""
    from .planning.estimate import most_rows, smallest_number

    lines = []
    for one in trained:
        if not one.fits:
            continue
        work, said = one.work, []
        each = -(-work.rows_per_step // one.num_devices)
        rows = min(most_rows(work, cluster.device, one.shards), each)
        if rows > work.micro_batch_rows:
            said.append(f"up to micro_batch_rows: {rows} fits (now {work.micro_batch_rows})")
        number = smallest_number(work, cluster.device)
        if number is not None and cluster.num_devices > 1:
            said.append(f"the smallest number of devices that fits is {number}")
        if said:
            lines.append(f"{work.stage}: {'; '.join(said)}")
    return lines


def _assumptions(found: list[Estimate], cluster: Cluster, options: argparse.Namespace) -> str:
    said = []
    if options.mfu is None and any(one.mfu for one in found):
        said.append("MFU as measured (--mfu)")
    if options.price is None and cluster.price:
        said.append("price (--price)")
    if cluster.num_devices > 1:
        said.append("speed of the network")
    said.append("speed of the disk (--disk)")
    what = "start, compilation and saving"
    return f"assumed: {', '.join(said)}; not counted: {what}; stages that train use all devices, others one"


def _passing_bytes(one: Estimate) -> float:
    """On the disk while a stage trains: saved states, and the one being written, of 12 bytes a trained parameter."""
    from .planning.compute import trained_parameters

    if one.work.trainable is None or one.work.shape is None:
        return 0
    return (one.work.num_states + 1) * 12 * trained_parameters(one.work.shape, one.work.trainable)


def _as_json(name: str, found: list[Estimate], cluster: Cluster) -> dict[str, Any]:
    from .planning.estimate import smallest_number

    device = cluster.device
    stages = [
        {
            "stage": one.work.stage,
            "kind": one.work.kind,
            "num_parameters": one.work.shape.num_parameters if one.work.shape else None,
            "num_active_parameters": one.work.shape.num_active_parameters if one.work.shape else None,
            "num_tokens": one.work.num_tokens,
            "tokens_are_counted": one.work.num_steps is not None,
            "flops": one.flops,
            "mfu": one.mfu,
            "num_devices": one.num_devices,
            "shards": one.shards,
            "memory_bytes": {item.name: round(item.num_bytes) for item in one.items},
            "fits": one.fits,
            "smallest_number_of_devices": smallest_number(one.work, device) if one.work.trainable else None,
            "tokens_per_second": one.tokens_per_second,
            "seconds": one.seconds,
            "dollars": one.dollars,
            "disk_bytes": {"kept": round(one.work.kept_bytes), "passing": round(_passing_bytes(one))},
            "notes": list(one.notes),
        }
        for one in found
    ]
    return {
        "recipe": name,
        "device": device.title,
        "per_node": cluster.per_node,
        "num_nodes": cluster.num_nodes,
        "peak_flops_per_second": device.peak,
        "usable_memory_bytes": round(found[0].capacity),
        "dollars_per_device_hour": device.price,
        "stages": stages,
        "seconds": sum(one.seconds for one in found),
        "dollars": sum(one.dollars for one in found),
    }


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f}{letter}"
    return f"{number:.0f}"


def _power(flops: float) -> str:
    return f"{flops:.2e}".replace("e+", "e") if flops else ""


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "0 s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _money(dollars: float, cluster: Cluster) -> str:
    if not cluster.price:
        return ""
    return f"${dollars:,.0f}" if dollars >= 100 else f"${dollars:.2f}"
