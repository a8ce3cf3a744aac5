"""Which of a file's names are which of a model's arrays, and what to say where they do not fit."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from typing import NamedTuple

from ..errors import UserError

# What training scripts wrap a network in: where all names fit under several prefixes, the one made of these is meant.
WRAPPINGS = frozenset({"model", "module", "backbone", "encoder", "_orig_mod", "net", "network"})
HEADS = frozenset({"fc", "classifier", "head", "last_linear", "linear"})
_TOLD = 5  # so many of a kind are named in an error
_COMPARED = 40  # so many names of each side are compared to find the nearest


class WeightsError(UserError, ValueError):
    """Weights that cannot be had, or do not fit the model."""


class Match(NamedTuple):
    """A file's names under a prefix, held against a model's.

    Attributes:
      prefix: what was taken off, with its dot; "".
      places: the model's name of each of the file's that is understood, heads included.
      missing: names of the model that the file does not have.
      unexpected: names of the file, under the prefix, that the model does not have.
      outside: names of the file that do not begin with the prefix and are not used.
    """

    prefix: str
    places: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    outside: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.missing and not self.unexpected


def match(keys: Collection[str], expected: Set[str], rename: Callable[[str], str | None]) -> Match:
    """The best match of a file's names under any prefix that they share.

    Args:
      keys: the file's names.
      expected: the model's, of arrays as PyTorch calls them: "layer1_0.bn1.running_mean". Those of the head begin with
        "head."; without them the head is not wanted.
      rename: from a name in the file, less the prefix, to the model's; None for one that is left out.

    Returns:
      The match with the shortest prefix under which all names fit, or the one with the fewest that do not.

    Raises:
      WeightsError: all names fit under several prefixes, none of them inside another, and not just one of them is
        made of usual wrappings.
    """
    matches = [_match_under(prefix, keys, expected, rename) for prefix in _prefixes(keys, len(expected) // 3)]
    fitting = [each for each in matches if each.fits]
    outermost = [
        each
        for each in fitting
        if not any(each.prefix != other.prefix and each.prefix.startswith(other.prefix) for other in fitting)
    ]
    usual = [each for each in outermost if set(each.prefix.split(".")) <= WRAPPINGS | {""}]
    for chosen in (outermost, usual):
        if len(chosen) == 1:
            return chosen[0]
    if outermost:
        raise WeightsError(
            f"the names fit under each of {', '.join(repr(each.prefix) for each in outermost[:_TOLD])}; save the "
            "weights that are meant alone"
        )
    return min(matches, key=lambda each: (len(each.missing) + len(each.unexpected), len(each.prefix)))


def _prefixes(keys: Iterable[str], at_least: int) -> list[str]:
    """ "" and the beginnings, each up to a dot, that so many names share."""
    counts = Counter(
        ".".join(parts[:end]) + "." for parts in (key.split(".") for key in keys) for end in range(1, len(parts))
    )
    return ["", *(prefix for prefix, count in counts.items() if count >= max(at_least, 1))]


def _match_under(prefix: str, keys: Collection[str], expected: Set[str], rename: Callable[[str], str | None]) -> Match:
    places, heads, unexpected, outside = {}, {}, [], []
    taken = set()
    for key in keys:
        name = rename(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if key.startswith(prefix) and (name is None or name.endswith(".num_batches_tracked")):
            continue
        if name is not None and name not in taken and (name in expected or name.startswith("head.")):
            places[key] = name
            taken.add(name)
        elif (head := _as_head(key, prefix)) is not None:
            heads[key] = head
        elif key.startswith(prefix):
            unexpected.append(key)
        else:
            outside.append(key)
    # A head beside the network that is wrapped, or by another name than the original's.
    if not any(name.startswith("head.") for name in places.values()) and len(set(heads.values())) == len(heads):
        places |= heads
    else:
        unexpected += [key for key in heads if key.startswith(prefix)]
        outside += [key for key in heads if not key.startswith(prefix)]
    places = _flat_head(places)
    missing = sorted(set(expected) - set(places.values()))
    return Match(prefix, places, tuple(missing), tuple(unexpected), tuple(outside))


def _as_head(key: str, prefix: str) -> str | None:
    """The model's name for a layer that is usually a head, and stands in the network or beside what wraps it."""
    parts = key.split(".")
    outer = list(itertools.takewhile(lambda part: part not in HEADS, parts))
    inner = parts[len(outer) + 1 :]
    return ".".join(("head", *inner)) if inner and set(outer) <= WRAPPINGS | set(prefix.split(".")) else None


def _flat_head(places: dict[str, str]) -> dict[str, str]:
    """A head that is the one layer with weights of a sequence, as after dropout, is that layer."""
    modules = {name.rpartition(".")[0] for name in places.values() if name.startswith("head.")}
    if len(modules) != 1:
        return places
    module = modules.pop()
    return {
        key: f"head.{name.rpartition('.')[2]}" if name.startswith(f"{module}.") else name
        for key, name in places.items()
    }


def head_layers(places: dict[str, str]) -> list[str]:
    """The layers of a file's head, by the model's names."""
    return sorted({name.rpartition(".")[0] for name in places.values() if name.startswith("head.")})


def common_prefix(keys: Collection[str]) -> str:
    """The longest beginning, up to a dot, of all names."""
    modules = [key.split(".")[:-1] for key in keys]
    shared = zip(min(modules, default=[]), max(modules, default=[]), strict=False)
    return ".".join(first for first, _ in itertools.takewhile(lambda parts: parts[0] == parts[1], shared))


def describe_misfit(
    missing: Sequence[str],
    unexpected: Sequence[str],
    shapes: Sequence[str],
    comparable: Callable[[str], str] = lambda name: name,
) -> str:
    """Counts, and the nearest names: what an error says of arrays that do not fit, in at most eleven lines.

    Args:
      missing: names in the model alone.
      unexpected: names in the file alone.
      shapes: a line for each array whose shape differs.
      comparable: makes names of both sides alike, to find the nearest.
    """
    counts = [
        f"arrays of the model that the file does not have: {len(missing)}" if missing else "",
        f"arrays of the file that the model does not have: {len(unexpected)}" if unexpected else "",
        f"arrays of another shape: {len(shapes)}" if shapes else "",
    ]
    lines = [", ".join(filter(None, counts))]
    pairs = _nearest(missing, unexpected, comparable)
    lines += [f"the model's {ours}; nearest in the file: {theirs}" for ours, theirs in pairs]
    if not pairs:
        lines += [f"not in the file: {name}" for name in missing[:_TOLD]]
        lines += [f"not in the model: {name}" for name in unexpected[:_TOLD]]
    return "\n  ".join(lines + list(shapes[:_TOLD]))


def _nearest(
    missing: Sequence[str], unexpected: Sequence[str], comparable: Callable[[str], str]
) -> list[tuple[str, str]]:
    """The most similar pairs of names of either side, each name once."""
    matcher, pairs = difflib.SequenceMatcher(autojunk=False), []
    for theirs in unexpected[:_COMPARED]:
        matcher.set_seq2(comparable(theirs))
        for ours in missing[:_COMPARED]:
            matcher.set_seq1(comparable(ours))
            pairs.append((-matcher.ratio(), ours, theirs))
    found: dict[str, str] = {}
    for _, ours, theirs in sorted(pairs):
        if ours not in found and theirs not in found.values() and len(found) < _TOLD:
            found[ours] = theirs
    return list(found.items())
