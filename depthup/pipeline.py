"""The walk through a recipe: each stage is found in the store, or made and put there. ``survey`` is the same walk
without the run."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from . import __version__
from .artifacts.fingerprint import fingerprint, first_difference
from .artifacts.record import Record
from .artifacts.store import Store
from .checkpoint.remote import local_folder
from .errors import BusyError, CheckpointError, OutputError, RecipeError, nearest
from .files import partial_path, write_json
from .launching import launch_ranks
from .recipe import Recipe
from .stage_data import Job
from .stage_settings import EvaluateStage, ReportStage, Stage
from .stages import KINDS, identity

State = Literal["cached", "stale", "missing", "partial"]
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0
_TOOLS = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Node:
    """A stage as it stands in the store.

    Attributes:
        name: Of the stage.
        stage: Its settings.
        identity: What its result depends on.
        fingerprint: Digest of that.
        state: ``cached`` (nothing to do), ``partial`` (a stopped run goes on), ``stale`` (only results of other
            settings are there), ``missing``.
        reason: For stale stages, the first setting that differs.
        folder: Where the result lies, or will.
        record: The result's record, when cached.
    """

    name: str
    stage: Stage
    identity: dict[str, Any]
    fingerprint: str
    state: State
    reason: str
    folder: Path
    record: Record | None


def survey(recipe: Recipe, store: Store, *, download: bool = False) -> dict[str, Node]:
    """The state of every stage, by name, in order. Writes nothing.

    Args:
        recipe: What should be made.
        store: What has been made.
        download: Whether to fetch hub models that are named and not here yet.

    Raises:
        CheckpointError: A file or folder that the recipe names is not there.
    """
    nodes: dict[str, Node] = {}
    for name, stage in recipe.stages.items():
        inputs = {
            source: nodes[source].fingerprint if source in nodes else _outside(source, store, download)
            for source in stage.inputs()
        }
        what = identity(stage, recipe, inputs, store.digests)
        digest = fingerprint(what)
        if adopted := store.adopted(name, digest):  # what comes from it depends on its files
            what, digest = adopted.identity, adopted.fingerprint
        record = _as_named_now(store.known(name, digest), stage, nodes)
        goes_on = KINDS[stage.kind].resumable and store.is_partial(name, digest)
        state: State = "cached" if record else "partial" if goes_on else "missing"
        reason = ""
        if state == "missing" and (other := store.newest(name)):
            state, reason = "stale", _why(other, what, stage, nodes)
        nodes[name] = Node(name, stage, what, digest, state, reason, store.folder(name, digest), record)
    return nodes


def _outside(name: str, store: Store, download: bool) -> str:
    """Fingerprint of a checkpoint that no stage makes; a hub model that is not here yet has a passing one."""
    try:
        return store.digests.of_checkpoint(local_folder(name, download=download))
    except CheckpointError:
        if download or "/" not in name or Path(name).parent.is_dir():
            raise
        return f"{name} is not here yet"


def _as_named_now(record: Record | None, stage: Stage, nodes: dict[str, Node]) -> Record | None:
    """Names are no part of a fingerprint: a record found under an older recipe gets the names of this one."""
    if record is None:
        return None
    is_adopted = "adopted" in record.identity  # then it came from nothing of this recipe
    inputs = {source: nodes[source].fingerprint for source in stage.inputs() if source in nodes and not is_adopted}
    results = record.results | ({"model": stage.model} if isinstance(stage, EvaluateStage) else {})
    return record.model_copy(update={"inputs": inputs, "results": results})


def needed_folders(recipe: Recipe, store: Store) -> set[Path]:
    """Where results of the recipe lie or will, and where its stopped runs go on."""
    folders = {node.folder for node in survey(recipe, store).values()}
    return folders | {partial_path(folder) for folder in folders}


def identity_of(record: Record) -> dict[str, Any]:
    """The settings that a result counts as made with; of an adopted one, those that it stands for."""
    stands_for: dict[str, Any] = record.circumstance.get("stands_for", record.identity)
    return stands_for


def require_stage(recipe: Recipe, name: str) -> None:
    """Raise :class:`RecipeError` unless the recipe has a stage of this name."""
    if name not in recipe.stages:
        raise RecipeError(
            f"no stage is called '{name}'{nearest(name, recipe.stages)}", allowed=", ".join(recipe.stages)
        )


def _why(other: Record, what: dict[str, Any], stage: Stage, nodes: dict[str, Node]) -> str:
    for key in stage.INPUTS:
        value = getattr(stage, key)
        for source in [value] if isinstance(value, str) else value or ():
            if source in nodes and other.inputs.get(source) not in (None, nodes[source].fingerprint):
                return f"its input {source} changed"
    return first_difference(identity_of(other), what) or "unknown"


def run(
    recipe: Recipe,
    store: Store,
    *,
    only: str | None = None,
    device: str = "auto",
    progress: bool = True,
    tell: Callable[[str], object] = print,
) -> dict[str, Node]:
    """Make every stage that is not cached, in order; what was stopped goes on.

    Args:
        recipe: What to make.
        store: Where results are found and put.
        only: Make no more than this stage; what it comes from must be cached.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``.
        progress: Whether to show bars.
        tell: Receives a line for each stage.

    Returns:
        All stages as they stand now.

    Raises:
        DepthupError: A stage failed; the ones before it are kept.
        KeyboardInterrupt: The run was stopped; a later one goes on.
    """
    if only is not None:
        require_stage(recipe, only)
    with _world(device) as world, store.in_use():
        return _walk(recipe, store, only, device, progress, tell, world)


@contextlib.contextmanager
def _world(device: str) -> Iterator[Any]:
    """The ranks that a launcher started (torchrun, Slurm); None, and torch is not loaded yet, for a process alone."""
    if "WORLD_SIZE" not in os.environ:
        yield None
        return
    from .models import resolve_device
    from .training.parallel import open_world

    with open_world(resolve_device(device)) as world:
        yield world if world.size > 1 else None


def _walk(
    recipe: Recipe, store: Store, only: str | None, device: str, progress: bool, tell: Callable[[str], object],
    world: Any,
) -> dict[str, Node]:  # fmt: skip
    if world is not None and not world.is_first:
        return _follow(recipe, store, only, device, world)
    nodes = survey(recipe, store, download=True)
    for name, node in nodes.items():
        if only not in (None, name):
            continue
        if node.record is not None:
            tell(f"{heading(nodes, name)} cached: {store.place(name, node.fingerprint)}")
        else:
            tell(f"{heading(nodes, name)} {started(node)}")
            nodes[name] = node = _make(node, nodes, recipe, store, device, progress, world)
            tell(f"{heading(nodes, name)} {ended(node)}")
        settle(store, node, progress=progress)
    return nodes


def settle(store: Store, node: Node, *, progress: bool = False) -> None:
    """What is done with each result that is there: ``latest`` leads to it, the mirror has it, a page lies here."""
    if isinstance(node.stage, ReportStage):
        store.bring(node.name, node.fingerprint)  # small, and wanted for itself
    store.point_to(node.name, node.fingerprint)
    store.share(node.name, node.fingerprint, progress=progress)


def snapshot(recipe: Recipe, store: Store) -> Path:
    """The recipe as a file in its store, for processes that make its stages: edits meanwhile change nothing."""
    value = recipe.model_dump(mode="json", exclude_none=True)
    path = store.root / ".recipes" / f"{fingerprint(value)[:12]}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    return path


def heading(nodes: Mapping[str, Node], name: str) -> str:
    """What a line about a stage begins with: ``[3/11] trained  pretrain``."""
    number = list(nodes).index(name) + 1
    return f"[{number}/{len(nodes)}] {name:<14} {nodes[name].stage.kind:<9}"


def started(node: Node) -> str:
    """What is told of a stage that begins."""
    return "running" + {"stale": f" ({node.reason})", "partial": " (goes on)"}.get(node.state, "")


def ended(node: Node) -> str:
    """What is told of a stage that was made."""
    assert node.record is not None
    return f"done in {duration(node.record.circumstance['seconds'])}: {node.folder}"


def _follow(recipe: Recipe, store: Store, only: str | None, device: str, world: Any) -> dict[str, Node]:
    """What the other ranks do: work along where a stage is made by all, wait for the first rank elsewhere."""
    for name in recipe.stages:
        nodes = survey(recipe, store)
        node, kind, is_done = nodes[name], KINDS[recipe.stages[name].kind], only not in (None, name)
        is_done = is_done or node.record is not None
        while not is_done and store.find(name, node.fingerprint) is None:
            folder = partial_path(node.folder)
            if kind.distributed and folder.is_dir():
                kind.run(_job(node, nodes, recipe, store, device, False, world), folder)
                kind = replace(kind, distributed=False)  # once; then wait until it is published
            time.sleep(_POLL_SECONDS)
    return survey(recipe, store)


def prepare(recipe: Recipe, store: Store, name: str, device: str = "cpu") -> Job:
    """A stage as it would be run, to look at: what it comes from must be made.

    Raises:
        RecipeError: There is no such stage, or something before it is not made.
    """
    require_stage(recipe, name)
    nodes = survey(recipe, store)
    return _job(nodes[name], nodes, recipe, store, device, False, None)


def _make(
    node: Node, nodes: dict[str, Node], recipe: Recipe, store: Store, device: str, progress: bool, world: Any
) -> Node:
    """Make a stage; one that another process is writing is waited for a while (it may be ending, or nearly done)."""
    launch = getattr(node.stage, "launch", None)
    if launch is not None and "WORLD_SIZE" not in os.environ:
        _job(node, nodes, recipe, store, device, progress, None)  # refused here if something is missing
        launch_ranks(launch, node.name, snapshot(recipe, store), store.root, node.fingerprint, device)
        record = store.find(node.name, node.fingerprint)
        assert record is not None, "all ranks ended well, and nothing was published"
        return replace(node, state="cached", reason="", record=record)
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return _make_now(node, nodes, recipe, store, device, progress, world)
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)
        except OutputError:
            if store.find(node.name, node.fingerprint) is None:
                raise
        if record := store.find(node.name, node.fingerprint):
            return replace(node, state="cached", reason="", record=record)


def _make_now(
    node: Node, nodes: dict[str, Node], recipe: Recipe, store: Store, device: str, progress: bool, world: Any
) -> Node:
    kind, job = KINDS[node.stage.kind], _job(node, nodes, recipe, store, device, progress, world)
    if kind.resumable:
        store.bring_state(node.name, node.fingerprint)
    with store.making(node.name, node.fingerprint, keep_partial=kind.resumable) as folder:
        started = time.perf_counter()
        with store.keeping_state(node.name, node.fingerprint):
            results = kind.run(job, folder)
        record = Record(
            stage=node.name,
            kind=node.stage.kind,
            fingerprint=node.fingerprint,
            identity=node.identity,
            inputs={source: nodes[source].fingerprint for source in node.stage.inputs() if source in nodes},
            results=results,
            circumstance={"seconds": round(time.perf_counter() - started, 2), "device": job.device, **_versions()},
        )
        record.write(folder)
    return Node(node.name, node.stage, node.identity, node.fingerprint, "cached", "", node.folder, record)


def _job(
    node: Node, nodes: dict[str, Node], recipe: Recipe, store: Store, device: str, progress: bool, world: Any
) -> Job:
    folders = {
        source: nodes[source].folder if source in nodes else local_folder(source) for source in node.stage.inputs()
    }
    records = {name: other.record for name, other in nodes.items() if other.record is not None}
    for source in node.stage.inputs():
        if source in nodes and source not in records:
            raise RecipeError(f"stage '{node.name}' needs '{source}', which is {nodes[source].state}",
                              next_step="run the whole recipe with `depthup run`")  # fmt: skip
        if source in nodes:
            store.bring(source, nodes[source].fingerprint, progress=progress)
    job = Job(node.name, node.stage, recipe, folders, records, store, device, progress)
    kind = KINDS[node.stage.kind]
    if kind.computes:
        from .models import resolve_device

        job = replace(job, device=resolve_device(device))
    if world is None or not kind.distributed:
        return job
    return replace(job, world=world.grouped(getattr(node.stage, "shard_ranks", None)))


def _versions() -> dict[str, str]:
    found = {"depthup": __version__, "python": platform.python_version()}
    for tool in _TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found


def duration(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02} s"


def outcome(nodes: dict[str, Node]) -> str:
    """What a finished run ends with: the table of each report stage and the path of its page."""
    from .report.collect import collect_rows
    from .report.tables import model_table

    records = {name: node.record for name, node in nodes.items() if node.record is not None}
    lines: list[str] = []
    for name, node in nodes.items():
        if isinstance(node.stage, ReportStage) and name in records:
            page = node.folder / str(records[name].results["page"])
            lines += ["", model_table(collect_rows(node.stage.evaluations, records)), "", f"report: {page}"]
    return "\n".join(lines)
