"""Where the time of a compiled step goes: each of its operations, timed, beside what the device could do.

An operation is an instruction of the optimised program (HLO). What it must do at least is read from the program's text:
bytes of its operands and its result, FLOPs of its products and convolutions. How long it took says JAX's profiler.
"""

from __future__ import annotations

import glob
import math
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from launch.benchmark.timing import clocked, median, take_turns

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
# Instructions that do nothing when the program runs.
_FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "after-all"})
_MOVES = _FREE | {"copy", "transpose", "reshape", "slice", "pad", "concatenate", "broadcast", "iota", "reverse"}
_MOVES |= {"dynamic-slice", "dynamic-update-slice", "gather", "copy-start", "copy-done", "convert"}


class Operation(NamedTuple):
    """An instruction of a program.

    Attributes:
      kind: what it mostly is: convolution, product, all-reduce, reduction, data movement, loop or elementwise.
      flops: of its convolutions and products; 0 of all others.
      bytes: of its operands, each once, and its result: what must at least go through memory if no cache holds it.
      source: where it comes from, as JAX names it: "jit(train_step)/jvp(ResNet)/stem/conv_general_dilated".
      times: how often it runs, in loops of a known length.
    """

    kind: str
    flops: float
    bytes: float
    source: str
    times: int = 1


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.partition("), ")[0])

    def attribute(self, name: str) -> str:
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest)
        return (found[1] if found[1] is not None else found[2]) if found else ""


def read_operations(program: str) -> dict[str, Operation]:
    """The operations of a program, by name, from its text (`compiled.as_text()`); free ones are left out.

    Those in the body of a loop of a known length are operations too, and the loop itself is only what it adds to them.
    """
    computations, entry = _split(program)
    shapes = {each.name: each.shape for body in computations.values() for each in body}
    return dict(_operations_of(entry, 1, computations, shapes))


def _operations_of(
    name: str, times: int, computations: Mapping[str, list[_Instruction]], shapes: Mapping[str, str]
) -> Iterator[tuple[str, Operation]]:
    """The operations of a computation that runs so often, and of the loops in it."""
    for each in computations[name]:
        if each.opcode in _FREE:
            continue
        source = re.search(r'op_name="([^"]*)"', each.rest)
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', each.rest) if each.opcode == "while" else None
        if trips:
            yield each.name, Operation("loop", 0.0, 0.0, source[1] if source else "", times)
            yield from _operations_of(each.attribute("body"), times * int(trips[1]), computations, shapes)
            continue
        inner = list(_inside(each, computations))
        flops = sum(_flops(one, shapes) for one in (each, *inner))
        moved = sum(_size(shapes[name]) for name in set(each.operands) if name in shapes) + _size(each.shape)
        kind = _kind({one.opcode for one in (each, *inner)})
        yield each.name, Operation(kind, flops, moved, source[1] if source else "", times)


def _split(program: str) -> tuple[dict[str, list[_Instruction]], str]:
    """A program's computations by name, and which of them is the entry."""
    computations: dict[str, list[_Instruction]] = {}
    name = entry = ""
    for line in program.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            computations[name] = []
            entry = name if found[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            computations[name].append(_Instruction(*found.groups()))
    return computations, entry


def _inside(instruction: _Instruction, computations: Mapping[str, list[_Instruction]]) -> Iterable[_Instruction]:
    """What a fusion, a call or a loop is made of, once each."""
    if instruction.opcode not in ("fusion", "call", "while", "conditional"):
        return
    for key in ("calls", "to_apply", "body"):
        for each in computations.get(instruction.attribute(key), ()):
            yield each
            yield from _inside(each, computations)


def _dimensions(shape: str) -> list[int]:
    found = _SHAPE.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _size(shape: str) -> float:
    """Bytes of an array, or of the arrays of a tuple."""
    return sum(
        _BYTES.get(kind, 4) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _SHAPE.findall(shape)
    )


def _flops(instruction: _Instruction, shapes: Mapping[str, str]) -> float:
    """Two for each multiplication of a product or convolution, those with the zeros between dilated places left out."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    operands = [_dimensions(shapes.get(name, "")) for name in instruction.operands[:2]]
    results = math.prod(_dimensions(instruction.shape))
    if instruction.opcode == "dot":
        contracted = instruction.attribute("lhs_contracting_dims")
        return 2.0 * results * math.prod(operands[0][int(axis)] for axis in contracted.split(",") if axis)
    kernel = instruction.attribute("dim_labels").partition("_")[2].partition("-")[0]
    each = math.prod(size for size, label in zip(operands[1], kernel, strict=True) if label != "o")
    between = re.search(r"lhs_dilate=([\dx]+)", instruction.rest)
    return 2.0 * results * each / (math.prod(map(int, between[1].split("x"))) if between else 1)


def _kind(opcodes: set[str]) -> str:
    for kind, signs in (
        ("loop", {"while"}),
        ("convolution", {"convolution"}),
        ("product", {"dot"}),
        ("all-reduce", {"all-reduce", "all-reduce-start", "reduce-scatter", "all-gather"}),
        ("reduction", {"reduce", "reduce-window"}),
    ):
        if opcodes & signs:
            return kind
    return "data movement" if opcodes <= _MOVES | {"fusion"} else "elementwise"


def time_operations(step: Callable[[], object], steps: int = 3) -> tuple[dict[str, float], float]:
    """Seconds that each operation took in a step, the mean over some, by JAX's profiler; and seconds of a whole step.

    `step` waits for its results. What an operation hands to threads of its own, as XLA's convolutions on CPUs do, the
    profiler does not see: the times then add up to less than the step.
    """
    step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            whole = [clocked(step)() for _ in range(steps)]
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        profile: Any = jax.profiler.ProfileData.from_file(path)
        seconds: Counter[str] = Counter()
        with warnings.catch_warnings():
            # Python 3.13 warns of how jaxlib 0.12.0 makes a type; where warnings are errors that ends the process.
            warnings.simplefilter("ignore", DeprecationWarning)
            for line in (line for plane in profile.planes for line in plane.lines):
                for event in line.events:
                    if name := dict(event.stats).get("hlo_op"):
                        seconds[name] += event.duration_ns / 1e9 / steps
    return dict(seconds), median(whole)


def measure_bandwidth(seconds: float = 2.0, size: int | None = None) -> float:
    """Bytes per second of reading and writing an array of `size` bytes, far larger than this device's caches."""
    size = size or (2**28 if jax.default_backend() == "cpu" else 2**31)
    array = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    work = lambda: copy(array).block_until_ready()
    work()
    return 2 * array.nbytes / median(take_turns({"copy": clocked(work)}, seconds)["copy"])


class Share(NamedTuple):
    """A kind of operation in a step.

    Attributes:
      name: of the kind, and whether it is of the forward or the backward pass.
      calls: operations.
      seconds: that they took.
      least: seconds that they would take at the device's peaks, each at the one that it is nearer to.
      flops, bytes: as in `Operation`.
    """

    name: str
    calls: int
    seconds: float
    least: float
    flops: float
    bytes: float

    @property
    def lost(self) -> float:
        return self.seconds - self.least


def group(
    operations: Mapping[str, Operation], seconds: Mapping[str, float], peak_flops: float, bandwidth: float
) -> list[Share]:
    """Operations by kind and pass, those that lose most first."""
    rows: dict[str, list[Share]] = {}
    for name, found in operations.items():
        passing = "backward" if "transpose(" in found.source else "forward" if "jvp(" in found.source else "other"
        flops, moved = found.times * found.flops, found.times * found.bytes
        title, least = f"{found.kind}, {passing}", max(flops / peak_flops, moved / bandwidth)
        rows.setdefault(title, []).append(Share(title, found.times, seconds.get(name, 0.0), least, flops, moved))
    return sorted((_sum(title, shares) for title, shares in rows.items()), key=lambda share: -share.lost)


def remainder(shares: Sequence[Share], whole: float) -> Share:
    """What of a step of `whole` seconds the profiler saw no operation in."""
    return Share("not seen", 0, whole - sum(share.seconds for share in shares), 0.0, 0.0, 0.0)


def total(shares: Sequence[Share], whole: float) -> Share:
    """A whole step."""
    return _sum("all", shares)._replace(seconds=whole)


def _sum(name: str, shares: Sequence[Share]) -> Share:
    return Share(name, *(sum(column) for column in zip(*(share[1:] for share in shares), strict=True)))
