"""Broken checkpoints end in one clear error, whichever door they come through; what is still whole is carried exactly.

Short by default. Long, as in CONTRIBUTING.md: ``DEPTHUP_FUZZ_EXAMPLES=10000 python -m pytest tests/fuzz``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import mutations
import pytest
import safetensors
import transformers.models.auto.configuration_auto  # noqa: F401 - asked for rare families: not to be counted as theirs

from depthup.checkpoint.check import check_checkpoint
from depthup.checkpoint.names import find_stack
from depthup.checkpoint.reader import INDEX_NAME, SINGLE_NAME, open_checkpoint, read_header
from depthup.cli import main
from depthup.errors import CheckpointError, DepthupError
from depthup.files import partial_path
from depthup.growth.adapters import WEIGHTS_NAME as ADAPTER
from depthup.growth.adapters import grow_adapter
from depthup.growth.surgery import upscale
from depthup.layers import INITS, LayerPlan

NUM_CASES = int(os.environ.get("DEPTHUP_FUZZ_EXAMPLES", "0"))
SEED = int(os.environ.get("DEPTHUP_FUZZ_SEED", "0"))
MAX_MEMORY_BYTES = 64_000_000
MAX_SECONDS = 10.0


def run(scratch: Scratch, one: Callable[[Scratch, Random], None], num_cases: int) -> None:
    """So many cases, always the same ones; one that fails is named by the text that makes it again."""
    for number in range(NUM_CASES or num_cases):
        seed = f"{one.__name__} {SEED} {number}"
        try:
            one(scratch, Random(seed))
        except BaseException as error:
            error.add_note(f"made again by Random({seed!r})")
            raise


# -- what is watched -------------------------------------------------------------------------------------------------

WRITES = {
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.symlink",
    "os.link",
    "os.rename",
    "shutil.rmtree",
    "shutil.move",
    "subprocess.Popen",
    "os.system",
    "socket.connect",
}
watched: list[tuple[str, str]] | None = None


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: Python calls it before each file is opened, made, renamed or removed."""
    if watched is None:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        written = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        watched.append(("write" if written else "read", os.path.abspath(os.fsdecode(arguments[0]))))
    elif event in WRITES:
        made = {"os.rename": arguments[:2], "os.link": arguments[1:2], "os.symlink": arguments[1:2]}
        paths = [path for path in made.get(event, arguments[:1]) if isinstance(path, (str, bytes))]
        watched.extend(("write", os.path.abspath(os.fsdecode(path))) for path in paths)


class Scratch:
    """``base``: the broken checkpoint; ``new/out``: where its target would be, ``new`` not made yet."""

    def __init__(self, root: Path) -> None:
        self.root, self.base, self.out = root, root / "base", root / "new" / "out"
        self.counts: Counter[str] = Counter()
        self.num_cases = 0
        self.peak = 0
        self.plain = True

    def fill(self, parts: mutations.Parts) -> None:
        self.plain = parts.plain
        self.fill_with(parts.files())

    def fill_with(self, files: dict[str, bytes]) -> None:
        if self.out.parent.exists():
            shutil.rmtree(self.out.parent)
        self.base.mkdir(exist_ok=True)
        for path in self.base.iterdir():
            path.unlink()
        for name, content in files.items():
            (self.base / name).write_bytes(content)


@contextlib.contextmanager
def watching(scratch: Scratch) -> Iterator[None]:
    """Memory stays small and time short; the base is read, only the output and its partial folder are written."""
    global watched
    watched = []
    start = time.perf_counter()
    scratch.num_cases += 1
    if measured := scratch.num_cases % 8 == 0:  # it takes four times as long
        tracemalloc.start()
    try:
        yield
    finally:
        seen, watched = watched, None
        peak = tracemalloc.get_traced_memory()[1] if measured else 0
        tracemalloc.stop()
    scratch.peak = max(scratch.peak, peak)
    assert peak < MAX_MEMORY_BYTES, f"{peak:,} bytes of memory"
    assert time.perf_counter() - start < MAX_SECONDS
    new = scratch.out.parent
    outputs = (f"{scratch.out}/", f"{partial_path(scratch.out)}/")
    for what, path in seen:
        inside = f"{path}/".startswith(outputs) or path == str(new)
        known = path.endswith((".py", ".pyc", ".so")) or path.startswith(
            (sys.base_prefix, sys.prefix, f"{scratch.base}/")
        )
        headers_of_a_server = os.path.basename(path).startswith("depthup-") or "/depthup-" in path
        assert inside or headers_of_a_server or (what == "read" and (known or path == str(scratch.root))), (
            f"{what}: {path}"
        )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scratch]:
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda descriptor: None)  # thousands of them would take minutes on a slow disk
    sys.addaudithook(watch)  # for good: a hook cannot be taken away
    made = Scratch(tmp_path_factory.mktemp("fuzz"))
    made.fill(mutations.BASES["one file"])
    for kind in INITS:  # imports what is imported late
        command(["upscale", str(made.base), str(made.out), "--layers", f"0-2,2:{kind},3-4", "--dry-run"])
        with contextlib.suppress(DepthupError):
            upscale(made.base, made.out, LayerPlan.parse(f"0-2,2:{kind},3-4", 5))
            shutil.rmtree(made.out.parent)
    yield made
    patch.undo()
    print(f"{dict(made.counts)}, at most {made.peak:,} bytes of memory")


# -- what is expected ------------------------------------------------------------------------------------------------


def attempt(function: Any, *arguments: Any, **options: Any) -> Any:
    """What a function returns, or the one error that it may raise, with a message for people."""
    try:
        return function(*arguments, **options)
    except DepthupError as error:
        assert_readable(str(error))
        return error


def assert_readable(message: str) -> None:
    assert 0 < len(message) < 2000, len(message)
    assert all(line.isprintable() for line in message.split("\n")), repr(message)
    assert message.count("\n") < 12, message


def command(arguments: list[str]) -> tuple[int, str, str]:
    """Exit status and what is said, by a terminal that takes UTF-8 and nothing else."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    said, complaint = (stream.seek(0) or stream.read() for stream in (out, err))
    assert (status == 2) == complaint.startswith("depthup: "), complaint
    assert complaint.count("depthup: ") <= 1 or status != 2
    if status == 2:
        assert_readable(complaint.rstrip("\n"))
    return status, said, complaint


def raw(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """All tensors as the safetensors library reads them."""
    index = folder / INDEX_NAME
    files = set(re.findall(r'"([^"/]*\.safetensors)"', index.read_text())) if index.exists() else [SINGLE_NAME]
    found = [item for file in sorted(files) for item in safetensors.deserialize((folder / file).read_bytes())]
    return {name: (info["dtype"], info["shape"], bytes(info["data"])) for name, info in found}


ZEROED = re.compile(r"\.(?:self_attn\.o_proj|mlp\.down_proj)\.weight$")


def expected(base: dict[str, Any], prefix: str, plan: LayerPlan) -> dict[str, Any]:
    """The target's tensors by the rule itself: a layer's tensors once for each of its places, the rest as it is."""
    result = {}
    for name, tensor in base.items():
        layer = re.fullmatch(re.escape(prefix) + r"\.(0|[1-9][0-9]{0,5})((?:\.[\s\S]*)?)", name)
        if layer is None:
            result[name] = tensor
            continue
        for target in [target for target, source in enumerate(plan.sources) if source == int(layer[1])]:
            silent = plan.inits and plan.inits[target].kind == "identity" and ZEROED.search(name)
            result[f"{prefix}.{target}{layer[2]}"] = (*tensor[:2], bytes(len(tensor[2]))) if silent else tensor
    return result


def assert_right(scratch: Scratch, prefix: str, plan: LayerPlan, clean: bool) -> None:
    opened = open_checkpoint(scratch.out)
    if scratch.plain and all(init.kind in ("copy", "identity") for init in plan.inits):
        assert raw(scratch.out) == expected(raw(scratch.base), prefix, plan)
    assert find_stack(opened.tensors, opened.config, prefix).num_layers == plan.num_target_layers
    if clean:
        assert check_checkpoint(scratch.out) == []


# -- the fuzz --------------------------------------------------------------------------------------------------------


def through_the_library(scratch: Scratch, random: Random) -> None:
    findings = check_checkpoint(scratch.base)
    for finding in findings:
        assert_readable(str(finding))
    opened = attempt(open_checkpoint, scratch.base)
    if isinstance(opened, DepthupError):
        scratch.counts["not opened"] += 1
        assert findings and isinstance(opened, CheckpointError) and opened.next_step
        assert isinstance(attempt(upscale, scratch.base, scratch.out, LayerPlan.upscale(5, 1)), CheckpointError)
        return
    stack = attempt(find_stack, opened.tensors, opened.config, random.choice((None, None, "model.layers")))
    plan = stack if isinstance(stack, DepthupError) else attempt(random_plan, stack.num_layers, random)
    if isinstance(plan, DepthupError):
        scratch.counts["no stack or plan"] += 1
        return
    shard_bytes = random.choice((1, 40, 10**9))
    surgery = attempt(upscale, scratch.base, scratch.out, plan, stack=stack.prefix, max_shard_bytes=shard_bytes)
    if isinstance(surgery, DepthupError):
        scratch.counts["refused"] += 1
        assert not scratch.out.parent.exists()
        return
    scratch.counts["written"] += 1
    assert_right(scratch, stack.prefix, plan, clean=not findings)


def random_plan(num_layers: int, random: Random) -> LayerPlan:
    kind = random.choice(sorted(INITS))
    text = random.choice((None, None, None, "0-1,1,0", "1,0", "3", "0-2,2:identity,3-4", f"0-2,2:{kind},3-4"))
    return LayerPlan.parse(text, num_layers) if text else LayerPlan.upscale(num_layers, random.choice((0, 1, 1, 2, 3)))


def broken(scratch: Scratch, random: Random) -> None:
    scratch.fill(mutations.broken(random))
    with watching(scratch):
        through_the_library(scratch, random)
    assert {path.name for path in scratch.root.iterdir()} <= {"base", "new"}
    assert not scratch.out.parent.exists() or os.listdir(scratch.out.parent) == ["out"]


def test_a_broken_checkpoint_is_one_clear_error_or_is_carried_exactly(scratch: Scratch) -> None:
    run(scratch, broken, 250)
    assert scratch.counts["written"] and scratch.counts["refused"] and scratch.counts["not opened"]


def damaged(scratch: Scratch, random: Random) -> None:
    parts = mutations.BASES[random.choice(("one file", "sharded"))]
    scratch.fill(parts)
    file = scratch.base / random.choice(["config.json", INDEX_NAME, SINGLE_NAME, *parts.headers])
    if file.exists() and random.random() < 0.7:
        file.write_bytes(mutations.edit_bytes(file.read_bytes(), random))
    else:
        file.write_bytes(mutations.random_file(random))
    with watching(scratch):
        through_the_library(scratch, random)


def test_a_file_of_damaged_or_random_bytes_is_one_clear_error(scratch: Scratch) -> None:
    run(scratch, damaged, 150)


COMMANDS = (
    ("check", "{base}", "--quick"), ("layers", "{base}", "--remove", "1"), ("layers", "{base}", "--preset", "g-stack"),
    ("upscale", "{base}", "{out}", "--remove", "1"), ("upscale", "{base}", "{out}", "--layers", "0,0,1", "--dry-run"),
    ("upscale", "{base}", "{out}", "--target-layers", "8", "--config-list", "rope_scaling=keep"),
    ("upscale", "{base}", "{out}", "--preset", "solar", "--stack", "model.layers"),
    ("upscale", "{base}", "{out}", "--remove", "1", "--link", "--digests"), ("layers", "{base}", "--undo"),
    ("upscale", "{base}", "{out}", "--undo"), ("check", "{base}", "--against", "{base}"),
    ("check", "{base}", "--against", "{base}", "--layers", "0-4"),
)  # fmt: skip


def commanded(scratch: Scratch, random: Random) -> None:
    parts = mutations.broken(random)
    scratch.fill(parts)
    verb, *arguments = random.choice(COMMANDS)
    if verb == "layers" and random.random() < 0.5:  # from the config alone
        for file in (INDEX_NAME, *parts.headers):
            (scratch.base / file).unlink(missing_ok=True)
    with watching(scratch):
        places = {"base": scratch.base, "out": scratch.out}
        status, said, complaint = command([verb, *(argument.format(**places) for argument in arguments)])
    scratch.counts[f"{verb} {status}"] += 1
    if verb == "check" and "--against" not in arguments:
        assert status == bool(check_checkpoint(scratch.base)) and not complaint
    elif verb == "check":
        assert status in (0, 1, 2)
    else:
        assert status in (0, 2) and (status == 2 or said)
    assert scratch.out.exists() == (verb == "upscale" and status == 0 and "--dry-run" not in arguments)
    assert scratch.out.exists() or not scratch.out.parent.exists()


def test_on_the_command_line_a_broken_checkpoint_is_one_message_and_status_2(scratch: Scratch) -> None:
    run(scratch, commanded, 100)


def adapted(scratch: Scratch, random: Random) -> None:
    scratch.fill(mutations.broken(random, mutations.ADAPTERS))
    plan = random.choice((LayerPlan.upscale(5, 1), LayerPlan.parse("0-2,2:identity,3-4", 5)))
    with watching(scratch):
        if random.random() < 0.5:
            done = not isinstance(attempt(grow_adapter, scratch.base, scratch.out, plan), DepthupError)
        else:
            more = random.choice(([], ["--base-layers", "5"], ["--base-model", "x"]))
            done = command(["upscale", str(scratch.base), str(scratch.out), "--layers", plan.text, *more])[0] == 0
    scratch.counts["adapter " + ("grown" if done else "refused")] += 1
    assert scratch.out.exists() == done and scratch.out.parent.exists() == done
    if done:
        theirs = [safetensors.deserialize((folder / ADAPTER).read_bytes()) for folder in (scratch.base, scratch.out)]
        held = [{bytes(info["data"]) for _, info in found} for found in theirs]
        assert {data for data in held[1] if any(data)} <= held[0] or "prompt_embeddings" in dict(theirs[0])


def test_a_broken_adapter_is_one_clear_error_or_grows(scratch: Scratch) -> None:
    run(scratch, adapted, 150)


def beheaded(scratch: Scratch, random: Random) -> None:
    header, data = mutations.shard(
        {"a": ("F32", [2]), "b.0.c": ("I8", [3]), "d": ("F4", [2, 1]), "e": ("BOOL", [0, 2])}
    )
    for _ in range(random.choice((1, 1, 2, 3))):
        header = mutations.edit_tree(header, random)
    text = mutations.to_text(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    if random.random() < 0.3:
        content = mutations.edit_bytes(content, random)
    scratch.fill_with({"file": content})
    with watching(scratch):
        found = attempt(read_header, scratch.base, "file")
    scratch.counts["header " + ("refused" if isinstance(found, DepthupError) else "read")] += 1
    if isinstance(found, DepthupError):
        assert isinstance(found, CheckpointError) and "is not a whole safetensors file" in found.problem
    else:
        theirs = {n: (i["dtype"], tuple(i["shape"]), bytes(i["data"])) for n, i in safetensors.deserialize(content)}
        assert {n: (t.dtype, t.shape, content[t.begin : t.end]) for n, t in found[0].items()} == theirs


def test_a_header_that_is_read_is_read_as_the_library_reads_it(scratch: Scratch) -> None:
    run(scratch, beheaded, 300)
