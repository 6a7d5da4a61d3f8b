"""Strings that select modules by name, ending or pattern, carried over to a layer plan.

Configs of quantised weights and of adapters hold such strings: ``model.layers.3.mlp``, ``re:.*layers\\.(3|4)\\..*``.
One is right on the target if it selects there exactly the copies of what it selects on the base. So each is tried as it
stands, then rewritten at the layer's index, then spelt out as names, and the first that proves right is taken.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, TypeAlias

from ..errors import CheckpointError, shown
from ..layers import LayerPlan
from .names import Stack

Selects: TypeAlias = Callable[[str], bool]  # whether it selects the module (or tensor) of this name
Rule: TypeAlias = Callable[[str], Selects]  # how one library reads a selector

# What stands for a layer's index in a pattern: digits, classes, alternatives, repeats.
_ATOM = r"(?:[0-9]|\\d|\[[0-9-]+\]|\((?:\?:)?(?:[0-9|?+*{},-]|\\d|\[[0-9-]+\])+\))(?:[+*?]|\{[0-9,]+\})?"
_DOT = r"(?:\\*\.|\[\.\])"
_PLAIN = re.compile(r"(?:re:|[+-]:)?\^?(?:[\w/-]|\\?\.)+\$?")
# Where transformers' classes put a text model's layers, whatever their names on disk.
_TEXT_HEADS = (
    "model", "language_model", "language_model.model", "model.language_model", "transformer", "model.text_model",
    "text_model.model", "model.decoder", "decoder", "thinker.model",
)  # fmt: skip
_MOST_NAMES = 500  # a list of more is no way to write a selector
_OTHER_SENSES = re.compile(r"vis|image|video|audio|speech|encoder")


# -- rules: how a selector is read ------------------------------------------------------------------------------------


def pattern(text: str, how: Callable[[re.Pattern[str], str], Any] = re.Pattern.match) -> Selects:
    """A regular expression; what is none selects nothing."""
    compiled = _compiled(text)
    return lambda name: compiled is not None and how(compiled, name) is not None


def _compiled(text: str) -> re.Pattern[str] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets within sets, which may mean something else one day
            return re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return None


def named(selector: str) -> Selects:
    """transformers: a pattern from the start to a dot or the end, or an ending (``should_convert_module``).

    What is no pattern, as ``*.mlp``, is read as a shell pattern.
    """
    if _compiled(selector) is None:
        return globbed(selector)
    matches = pattern(rf"(?:{selector})(?:(?<=\.)|(?=\.|$))")
    return lambda name: matches(name) or name.endswith(selector)


def prefixed(selector: str) -> Selects:
    """compressed-tensors: ``re:`` and a pattern from the start, else a whole name."""
    return pattern(selector[3:]) if selector.startswith("re:") else selector.__eq__


def qualified(selector: str) -> Selects:
    """torchao: ``re:`` and a pattern of the whole name, else a whole name."""
    return pattern(selector[3:], re.Pattern.fullmatch) if selector.startswith("re:") else selector.__eq__


def dynamic(selector: str) -> Selects:
    """GPTQModel's ``dynamic``: a pattern from the start, behind ``+:`` or ``-:`` if either stands there."""
    return pattern(re.sub(r"^[+-]:", "", selector))


def searched(selector: str) -> Selects:
    """Gemma: a pattern anywhere in the name."""
    return pattern(selector, re.Pattern.search)


def named_or_searched(selector: str) -> Selects:
    """AutoRound: a whole name, or, if it has a sign that names lack, a pattern anywhere in the name."""
    return searched(selector) if re.search(r"[*+?^$()\[\]{}|\\]", selector) else selector.__eq__


def globbed(selector: str) -> Selects:
    """ModelOpt, Quark: a shell pattern."""
    return lambda name: fnmatchcase(name, selector)


def general(selector: str) -> Selects:
    """Read by its form, where the format is not known."""
    if selector.startswith("re:"):
        return prefixed(selector)
    return dynamic(selector) if selector[:2] in ("+:", "-:") else named(selector)


# -- the modules of base and target -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Modules:
    """The modules that a selector may speak of.

    Attributes:
        stack: The stack that grows.
        plan: The plan.
        suffixes: What stands behind the index in the names of each base layer: ``""``, ``".mlp"``, ``".mlp.up_proj"``;
            blocks that are numbered on behind the last layer come last.
        outside: Names of modules outside the stack.
    """

    stack: Stack
    plan: LayerPlan
    suffixes: tuple[tuple[str, ...], ...]
    outside: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str], stack: Stack, plan: LayerPlan) -> Modules:
        """The modules above (and including) tensors of these names."""
        layers: list[dict[str, None]] = [{"": None} for _ in range(stack.num_layers + stack.num_extra)]
        outside: dict[str, None] = {}
        for name in names:
            place = stack.split(name)
            if place is None or place[0] >= len(layers):
                outside.update(dict.fromkeys(_ancestors(name)))
            else:
                layers[place[0]].update(dict.fromkeys(f".{part}" for part in _ancestors(place[1])))
        return cls(stack, plan, tuple(map(tuple, layers)), tuple(outside))

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Each index in the target's names, with the one that it comes from."""
        n, s = self.plan.num_base_layers, self.plan.num_target_layers
        return (*enumerate(self.plan.sources), *((s + i, n + i) for i in range(self.stack.num_extra)))

    def copies(self, index: int) -> list[int]:
        """The indices in the target's names that come from one of the base's."""
        return [target for target, source in self.places if source == index]

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """The stack's prefix, first on disk, then as classes may have it in memory; none is another container's."""
        parts = self.stack.prefix.split(".")
        endings = [".".join(parts[i:]) for i in range(len(parts))]
        found = dict.fromkeys([*endings, *(f"model.{ending}" for ending in endings)])
        if not _OTHER_SENSES.search(self.stack.prefix):
            found.update(dict.fromkeys(f"{head}.{parts[-1]}" for head in _TEXT_HEADS))
        return tuple(name for name in found if name == self.stack.prefix or name not in self.outside)

    @cached_property
    def is_alone(self) -> bool:
        """Whether no other container ends in the same word, so that ``layers.3`` can only be of this stack."""
        word = self.stack.prefix.rpartition(".")[2]
        return not any(name == word or name.endswith(f".{word}") for name in self.outside)

    def base(self, prefix: str) -> Iterator[str]:
        """Every name of the base, with the layers under ``prefix``."""
        yield from self.outside
        for layer, suffixes in enumerate(self.suffixes):
            for suffix in suffixes:
                yield f"{prefix}.{layer}{suffix}"

    def pairs(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Every name of the target, with the name of the base that it is a copy of."""
        yield from zip(self.outside, self.outside, strict=True)
        for target, source in self.places:
            for suffix in self.suffixes[source]:
                yield f"{prefix}.{target}{suffix}", f"{prefix}.{source}{suffix}"


def _ancestors(name: str) -> Iterator[str]:
    position = name.find(".")
    while position >= 0:
        yield name[:position]
        position = name.find(".", position + 1)
    yield name


# -- carrying ---------------------------------------------------------------------------------------------------------


def carry_selector(selector: str, rule: Rule, modules: Modules, *, where: str, alone: bool = False) -> list[str]:
    """The selectors that stand for this one on the target; none if all that it selects is left out.

    Args:
        selector: The string.
        rule: How its library reads it.
        modules: The modules of base and target.
        where: The field that it stands in, for the error.
        alone: Whether there is room for one pattern only, or else a list of plain names.

    Raises:
        CheckpointError: It depends on a layer's index in a way that cannot be written for the target.
    """
    if (quick := _plain(selector, modules)) is not None and (not alone or len(quick) == 1):
        return quick
    selects = rule(selector)
    word = modules.stack.prefix.rpartition(".")[2]
    for prefix in modules.prefixes if word in selector else modules.prefixes[:1]:
        if chosen := {name for name in modules.base(prefix) if selects(name)}:
            break
    else:
        return [selector]  # it selects nothing here
    pairs = list(modules.pairs(prefix))
    wanted = {target for target, source in pairs if source in chosen}
    layers = [target for target, source in modules.places
              if any(f"{prefix}.{target}{suffix}" in wanted for suffix in modules.suffixes[source])]  # fmt: skip
    rewritten = (texts for texts in _rewritings(selector, modules, layers) if not alone or len(texts) == 1)
    sign = selector[:2] if selector[:2] in ("+:", "-:") else ""  # GPTQModel's, which says what is done
    for candidate in ([selector], *rewritten, *_spelt_out(wanted, sign)):
        readers = [rule(text) for text in candidate]
        if all(any(reads(target) for reads in readers) == (target in wanted) for target, _ in pairs):
            return candidate
    raise CheckpointError(
        f"{where} has '{shown(selector)}', which selects modules by the index of their layer in a way that depthup"
        " cannot write for the target",
        next_step="write it in the base as names, one for each layer, as in"
        f" {modules.stack.prefix}.3.mlp, or as {modules.stack.prefix.rpartition('.')[2]}\\.(3|4)\\.",
    )


def carry_fields(value: Any, modules: Modules, rules: Mapping[str, Rule | None], *, where: str,
                 rule: Rule = general) -> Any:  # fmt: skip
    """A JSON value in which every list item and every key that selects modules is carried over.

    Args:
        value: The value, which is not changed.
        modules: The modules of base and target.
        rules: How selectors below a key are read; None where none stand below it.
        where: What the value is called, for errors.
        rule: How selectors are read in and below this value.

    Raises:
        CheckpointError: See :func:`carry_selector`.
    """
    if isinstance(value, list):
        items: list[Any] = []
        for item in value:
            if isinstance(item, str):
                items += carry_selector(item, rule, modules, where=where)
            else:
                items.append(carry_fields(item, modules, rules, where=where, rule=rule))
        return items
    if isinstance(value, dict):
        result = {}
        for key, item in value.items():
            below = rules.get(key, rule)
            carried = item if below is None else carry_fields(item, modules, rules, where=f"{where}.{key}", rule=below)
            for new in carry_selector(key, rule, modules, where=where):
                result[new] = carried
        return result
    if isinstance(value, str) and "," in value:
        names = [part.strip() for part in value.split(",")]
        copies = [copy for name in names for copy in (_plain(name, modules) or [name])]
        return value if copies == names else ",".join(copies)
    return value


def _plain(selector: str, modules: Modules) -> list[str] | None:
    """The quick way, for a plain name: its layer's index is replaced, or it has no number and stays; else None."""
    if not _PLAIN.fullmatch(selector):
        return None
    if not re.search(r"\d", selector):
        return [selector]
    last = re.escape(modules.stack.prefix.rpartition(".")[2])
    match = re.fullmatch(rf"(?P<kind>re:|[+-]:)?(?P<head>.*?)(?<![\w]){last}(?P<dot>\\?\.)(?P<index>[0-9]{{1,6}})"
                         rf"(?P<tail>(?:\\?\.|\$).*|)", selector)  # fmt: skip
    if match is None or (match["kind"] in ("+:", "-:") and not match["tail"]):
        return None
    known = [prefix.rpartition(".")[0] for prefix in modules.prefixes]
    if match["head"].replace("\\", "").lstrip("^").rstrip(".") not in (known if modules.is_alone else known[:1]):
        return None
    start = len(selector) - len(match["tail"])
    before = selector[: start - len(match["index"])]
    return [f"{before}{target}{match['tail']}" for target in modules.copies(int(match["index"]))]


def _rewritings(selector: str, modules: Modules, layers: Sequence[int]) -> Iterator[list[str]]:
    """Ways to write the selector with other indices where it has the layer's, simplest first.

    ``layers`` are the target layers in which it should select something.
    """
    last = re.escape(modules.stack.prefix.rpartition(".")[2])
    place = re.compile(rf"(?<![A-Za-z0-9_])({last}{_DOT})((?:{_ATOM})+)(?={_DOT}|\$|\)|$)")
    found = [match[2] for match in place.finditer(selector)]
    if found and len(set(found)) == 1 and found[0].isdigit():
        yield [place.sub(rf"\g<1>{target}", selector) for target in modules.copies(int(found[0]))]
    if found:
        yield [place.sub(lambda match: match[1] + _alternatives(_matched(match[2], modules), modules), selector)]
        yield [place.sub(lambda match: match[1] + _alternatives(layers, modules) + "(?![0-9])", selector)]
    star = re.compile(rf"(?<![A-Za-z0-9_])({last}\.)([0-9?\[\]-]*[0-9?\]])(\*?)(?=\.|$)")
    if match := star.search(selector):
        index = match[2] + match[3]
        targets = [target for target, source in modules.places if fnmatchcase(str(source), index)]
        head, tail = selector[: match.end(1)], selector[match.end() :]
        yield [f"{head}{target}{tail}" for target in targets]
        if match[3] and not tail:
            yield [f"{head}{target}{end}" for target in targets for end in ("", ".*")]


def _matched(index: str, modules: Modules) -> list[int]:
    """The indices in the target's names that come from those that a pattern matches."""
    matches = pattern(index, re.Pattern.fullmatch)
    return [target for target, source in modules.places if matches(str(source))]


def _alternatives(indices: Sequence[int], modules: Modules) -> str:
    if len(indices) == len(modules.places):
        return "[0-9]+"
    return f"(?:{'|'.join(map(str, indices))})" if indices else "(?!)"


def _spelt_out(wanted: set[str], sign: str) -> Iterator[list[str]]:
    """The names themselves: the outermost alone, all, all as patterns of the whole name."""
    names = sorted(wanted)
    yield [sign + name for name in names if name.rpartition(".")[0] not in wanted]
    if len(names) <= _MOST_NAMES:
        yield [sign + name for name in names]
        yield [f"{sign}^{re.escape(name)}$" for name in names]
