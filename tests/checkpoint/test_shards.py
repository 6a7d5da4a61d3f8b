"""The layout of a target's files: even sizes, blocks that can be shared, files of the base used as they are."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.checkpoint.copy import BLOCK_BYTES
from depthup.checkpoint.reader import SINGLE_NAME, Tensor
from depthup.checkpoint.shards import Move, Run, Shard, plan_shards

N, REMOVED = 32, 8
SOURCES = (*range(N - REMOVED), *range(REMOVED, N))


def file_of(name: str, tensors: list[tuple[str, int]], header_bytes: int) -> list[Tensor]:
    """Tensors of bytes, one behind the other, behind a header of some length."""
    found, begin = [], header_bytes
    for tensor, size in tensors:
        found.append(Tensor(tensor, "U8", (size,), name, begin, begin + size))
        begin += size
    return found


def mistral(num_files: int = 3) -> list[Tensor]:
    """Names and sizes of Mistral 7B in bf16, in files whose headers have unlike lengths."""
    layer = {"input_layernorm": 8192, "mlp.down": 117440512, "mlp.gate": 117440512, "mlp.up": 117440512,
             "post_attention_layernorm": 8192, "k": 8388608, "o": 33554432, "q": 33554432, "v": 8388608}  # fmt: skip
    tensors = [("embed", 262144000)]
    tensors += [(f"layers.{i}.{name}", size) for i in range(N) for name, size in layer.items()]
    tensors += [("norm", 8192), ("lm_head", 262144000)]
    total, done = sum(size for _, size in tensors), 0
    files: list[list[tuple[str, int]]] = [[] for _ in range(num_files)]
    for name, size in tensors:
        files[done * num_files // total].append((name, size))
        done += size
    return [t for i, held in enumerate(files) for t in file_of(f"file {i}", held, 8 + 8 * (1234 + 56 * i))]


def grown(base: list[Tensor]) -> list[Move]:
    by_layer: dict[int, list[tuple[str, Tensor]]] = {}
    for tensor in base:
        if tensor.name.startswith("layers."):
            _, layer, rest = tensor.name.split(".", 2)
            by_layer.setdefault(int(layer), []).append((rest, tensor))
    layers = [
        Move(f"layers.{target}.{rest}", tensor)
        for target, source in enumerate(SOURCES)
        for rest, tensor in by_layer[source]
    ]
    head = [Move(tensor.name, tensor) for tensor in base if not tensor.name.startswith("layers.")]
    return [head[0], *layers, *head[1:]]


# -- sizes ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 200))
@settings(max_examples=300, deadline=None)
def test_files_are_as_few_as_can_be_and_as_even_as_their_tensors_allow(sizes: list[int], max_bytes: int) -> None:
    moves = [
        Move(str(i), tensor) for i, tensor in enumerate(file_of("s", [(str(i), n) for i, n in enumerate(sizes)], 8))
    ]
    shards = plan_shards(moves, max_bytes)
    assert [move for shard in shards for move in shard.moves] == moves
    filled = [shard.num_data_bytes for shard in shards]
    assert all(size <= max(max_bytes, max(sizes)) for size in filled)
    # Both bounds by dynamic programming over all ways to cut.
    assert len(shards) == fewest(sizes, max_bytes)
    assert max(filled) <= max(smallest_largest(sizes, len(shards)), max(sizes)) + max_bytes // 1000 + 1


def fewest(sizes: list[int], max_bytes: int) -> int:
    best = [0] + [len(sizes)] * len(sizes)
    for end in range(1, len(sizes) + 1):
        for begin in range(end):
            if sum(sizes[begin:end]) <= max_bytes or sum(size > 0 for size in sizes[begin:end]) == 1:
                best[end] = min(best[end], best[begin] + 1)
    return best[-1]


def smallest_largest(sizes: list[int], num_files: int) -> int:
    best = [0] + [sum(sizes)] * len(sizes)
    for _ in range(num_files):
        best = [0] + [min(max(best[b], sum(sizes[b:e])) for b in range(e)) for e in range(1, len(sizes) + 1)]
    return best[-1]


def test_solar_from_one_file_is_five_files_of_4_3_gb() -> None:
    shards = plan_shards(grown(mistral(1)), 5_000_000_000)
    assert [round(shard.num_data_bytes / 1e9, 1) for shard in shards] == [4.3, 4.2, 4.3, 4.3, 4.3]
    assert [shard.file for shard in shards] == [f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)]


def test_files_end_where_the_bases_do_unless_that_makes_many_more() -> None:
    for num_files, cut_there in ((2, True), (3, True), (4, True), (8, False)):
        shards = plan_shards(grown(mistral(num_files)), 5_000_000_000)
        of_one = [len({move.source.shard for move in shard.moves}) == 1 for shard in shards]
        assert all(of_one) == cut_there and len(shards) == 5 + cut_there
    assert len(plan_shards(grown(mistral(3)), 1 << 40)) == 1


# -- blocks -----------------------------------------------------------------------------------------------------------


def shared_bytes(shard: Shard) -> int:
    """Bytes in runs whose place in the file is congruent to that in the base, modulo a block."""
    position, shared = len(shard.header()), 0
    for run in shard.runs():
        assert isinstance(run, Run)
        if (position - run.begin) % BLOCK_BYTES == 0:
            shared += run.end - run.begin
        position += run.end - run.begin
    assert position == shard.num_written_bytes
    return shared


def test_the_bytes_of_a_target_can_share_the_blocks_of_its_base() -> None:
    for num_files, share in ((1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (8, 0.4)):
        shards = plan_shards(grown(mistral(num_files)), 5_000_000_000)
        total = sum(shard.num_data_bytes for shard in shards)
        assert sum(map(shared_bytes, shards)) >= share * total, num_files
        assert all(len(shard.header()) % 8 == 0 for shard in shards)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 600), st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_header_is_padded_to_the_place_that_shares_most(blocks: list[int], header: int, odd: bool) -> None:
    tensors = file_of("a", [(f"a{i}", n * BLOCK_BYTES) for i, n in enumerate(blocks)], 8 + 8 * header + odd)
    other = file_of("b", [("b", BLOCK_BYTES * 2)], 8 + 8 * 77)[0]
    shard = Shard("out", tuple(Move(tensor.name, tensor) for tensor in [other, *tensors]))
    shared, long = shared_bytes(shard), sum(blocks) * BLOCK_BYTES
    assert len(shard.header()) % 8 == 0  # a base whose data begin at an odd place cannot be shared
    assert shared >= (max(2 * BLOCK_BYTES, long) if not odd and long >= 2 * BLOCK_BYTES else 2 * BLOCK_BYTES)


# -- links ------------------------------------------------------------------------------------------------------------


def test_files_all_of_whose_tensors_stay_are_linked_and_the_rest_is_written() -> None:
    base = mistral(4)
    shards = plan_shards(grown(base), 5_000_000_000, base)
    links = {shard.link: shard for shard in shards if shard.link}
    # 24 of 32 layers and the embeddings keep their names: the first 2 of 4 files hold nothing else, the third does.
    assert list(links) == ["file 0", "file 1"] and [shard.link for shard in shards[:2]] == list(links)
    for name, shard in links.items():
        assert [move.source for move in shard.moves] == [tensor for tensor in base if tensor.shard == name]
        assert all(move.name == move.source.name for move in shard.moves) and shard.num_written_bytes == 0
    names = [move.name for shard in shards for move in shard.moves]
    assert len(names) == len(set(names)) and set(names) == {move.name for move in grown(base)}
    assert [shard.file for shard in shards] == [f"model-{i:05}-of-00006.safetensors" for i in range(1, 7)]


def test_a_file_with_one_tensor_that_moves_or_is_made_is_not_linked() -> None:
    base = file_of("a", [("x", 8), ("y", 8)], 8)
    kept = [Move(tensor.name, tensor) for tensor in base]
    assert [shard.link for shard in plan_shards(kept, 100, base)] == ["a"]
    assert plan_shards(kept, 100, base)[0].file == SINGLE_NAME
    for spoilt in ([kept[0]], [kept[0], Move("z", base[1])], [kept[0], Move("y", base[0])],
                   [kept[0], Move("y", base[1], lambda: [bytes(8)])]):  # fmt: skip
        assert not any(shard.link for shard in plan_shards(spoilt, 100, base))
