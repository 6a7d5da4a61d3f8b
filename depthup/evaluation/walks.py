"""Score all paths: over their trees, or row by row; batches are halved when a device runs out of memory.

Which of the two a model allows is found out by scoring a few short sequences both ways, not by its name: recurrent
layers, biases by place and families that do not pass the pass on to their attention all show there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from ..errors import DepthupError
from ..models import Model
from .encoding import Path
from .memory import fit_budget, is_out_of_memory
from .passes import Launched, Runner, batches, num_scored
from .prefixes import MAX_BRANCH_TOKENS, Sequences, Stem, Tree, plan, sort_sequences
from .tree_attention import Keys, tree_attention

Scored = Callable[[int, float, bool], None]  # index of a path, its log-likelihood in nats, all tokens the likeliest
_PROVED_TOKENS = 64
_LIKE_ON_CPU = 0.75  # of the longest tree of a batch: a processor feels what attention pads, an accelerator more passes


class Tally:
    """Sums what passes find. A batch is read only after the next has been launched, so that no device waits.

    Args:
        paths: That are scored.
        scored: Hears of each as soon as it is known.
    """

    def __init__(self, paths: Sequence[Path], scored: Scored) -> None:
        self._scored = scored
        self._sums = np.zeros(len(paths))
        self._likeliest = np.ones(len(paths), bool)
        self._left = np.array([path.num_scored for path in paths])
        self._launched: Launched | None = None

    def take(self, launched: Launched) -> None:
        """Keep a batch for later and read the one before."""
        before, self._launched = self._launched, launched
        self._read(before)

    def close(self) -> None:
        """Read the last batch."""
        before, self._launched = self._launched, None
        self._read(before)

    def _read(self, launched: Launched | None) -> None:
        if launched is None or not len(launched.paths):
            return
        owners, (found, likeliest) = launched.paths, launched.read()
        np.add.at(self._sums, owners, found.astype(np.float64))
        np.logical_and.at(self._likeliest, owners, likeliest)
        np.subtract.at(self._left, owners, 1)
        for index in np.unique(owners[self._left[owners] == 0]).tolist():
            self._scored(index, float(self._sums[index]), bool(self._likeliest[index]))


class Walker:
    """Scores with one model; its batches stay as small as memory has once made them.

    Args:
        model: In evaluation mode.
        batch_tokens: Tokens of a pass; None fits them to memory.
    """

    def __init__(self, model: Model, batch_tokens: int | None = None) -> None:
        self._model, self._runner = model, Runner(model)
        self._batch_tokens, self._budget = batch_tokens, fit_budget(model, batch_tokens)

    def by_trees(
        self, paths: Sequence[Path], tally: Tally, *, max_branch_tokens: int = MAX_BRANCH_TOKENS, progress: bool = False
    ) -> None:
        """All that paths share is computed once.

        Raises:
            NotShared: The model's attention does not take trees.
        """
        sequences = sort_sequences(paths)
        root = plan(sequences, max_branch_tokens)
        with tree_attention(self._model) as base, _bar(root.num_tokens, progress) as bar:
            self._stand(root, (), sequences, paths, base, tally, bar)

    def _stand(
        self, stem: Stem, below: Sequence[Keys], sequences: Sequences, paths: Sequence[Path], base: str, tally: Tally,
        bar: tqdm,
    ) -> None:  # fmt: skip
        """Compute a stem, then all that stands on it; its keys and values are dropped after that."""
        kept = list(below)

        def grow(_: Sequence[Tree]) -> None:
            kept[:], launched = self._runner.stem(sequences, paths, stem, base, below)
            tally.take(launched)

        size = stem.fork - stem.depth
        if size:
            self._fitting(grow, [Tree(stem.first, stem.last, stem.depth, stem.fork, size)])
            bar.update(size)

        def run(batch: Sequence[Tree]) -> None:
            tally.take(self._runner.trees(sequences, paths, batch, base, kept))

        self._in_batches(stem.trees, run, sequences, paths, bar)
        for above in stem.stems:
            self._stand(above, kept, sequences, paths, base, tally, bar)

    def by_rows(self, paths: Sequence[Path], tally: Tally, *, progress: bool = False) -> None:
        """Rows padded on the right: a token is not touched by what comes after it, so batches change nothing."""
        sequences = sort_sequences(paths)
        rows = [Tree(index, index + 1, 0, len(tokens), len(tokens)) for index, tokens in enumerate(sequences.tokens)]

        def run(batch: Sequence[Tree]) -> None:
            tally.take(self._runner.rows(paths, [sequences.members[row.first] for row in batch]))

        with _bar(sum(row.num_tokens for row in rows), progress) as bar:
            self._in_batches(rows, run, sequences, paths, bar)

    def _in_batches(
        self, trees: Sequence[Tree], run: Callable[[Sequence[Tree]], None], sequences: Sequences,
        paths: Sequence[Path], bar: tqdm,
    ) -> None:  # fmt: skip
        like = _LIKE_ON_CPU if self._runner.device.type == "cpu" else 0.0
        for batch in batches(trees, lambda: self._budget, lambda tree: num_scored(sequences, paths, tree), like):
            self._fitting(run, batch)
            bar.update(sum(tree.num_tokens for tree in batch))

    def _fitting(self, run: Callable[[Sequence[Tree]], None], batch: Sequence[Tree]) -> None:
        """Run a batch, in halves where memory does not hold it; later batches are halved, too."""
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            try:
                run(part)
                continue
            except Exception as error:  # any kind may say that memory is out; the others go on their way
                if not is_out_of_memory(error):
                    raise
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(part) == 1:
                raise DepthupError(
                    f"{self._model.device} has no memory for one text of {part[0].num_tokens:,} tokens",
                    next_step="load the model in bfloat16, set a smaller max_length, or use a device with more memory",
                )
            self._budget = self._budget.halved()
            half = len(part) // 2
            waiting += [part[half:], part[:half]]


def proves_sharing(model: Model, paths: Sequence[Path]) -> bool:
    """Whether a model scores sequences that share beginnings as it scores them alone.

    A few are made of the longest path's tokens, longer than any window that the config names, once with stems and once
    with branches; each scored token may differ by the root of the type's precision.
    """
    longest = max(paths, key=lambda path: len(path.tokens)).tokens
    windows = [
        2 * value
        for name, value in model.config.get_text_config().to_dict().items()
        if ("window" in name or "chunk" in name) and isinstance(value, int) and 1 < value < len(longest)
    ]
    size = min(max([_PROVED_TOKENS, *windows]), len(longest))
    trunk, other = longest[:size], longest[::-1]
    ways = [(size, 0), (size - 4, 3), (size - 4, 4), (size - 6, 6), (size // 2, 9), (size // 2 - 1, 7)]
    made = [
        Path(np.append(trunk[: max(kept, 1)], other[number : number + added])[:size], 0)
        for number, (kept, added) in enumerate(ways)
    ]
    made = [Path(path.tokens, min(6, len(path.tokens) - 1)) for path in made if len(path.tokens) > 1]
    walker = Walker(model)

    def scores(walk: Callable[[Tally], None]) -> list[float]:
        found = [float("nan")] * len(made)
        tally = Tally(made, lambda index, score, likeliest: found.__setitem__(index, score))
        walk(tally)
        tally.close()
        return found

    alone = scores(lambda tally: walker.by_rows(made, tally))
    try:
        shared = [
            scores(lambda tally: walker.by_trees(made, tally, max_branch_tokens=branch_tokens))  # noqa: B023
            for branch_tokens in (32, 4)
        ]
    except Exception as error:  # a family's code met what it does not know: any kind of error says so
        if is_out_of_memory(error):
            raise
        return False
    slack = 6 * float(torch.finfo(model.dtype).eps) ** 0.5
    return all(bool(np.allclose(alone, one, rtol=0, atol=slack)) for one in shared)


def _bar(num_tokens: int, shown: bool) -> tqdm:
    return tqdm(
        total=num_tokens, desc="score", unit="tok", unit_scale=True, disable=not shown, dynamic_ncols=True, leave=False
    )
