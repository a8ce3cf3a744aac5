"""Reading PyTorch state dicts from `.safetensors` and `.pth` files, without PyTorch.

A `.pth` file is a pickle, and unpickling can run any code. Here it is read as data (pickles.py): of what it names,
tensors, their storages and `OrderedDict` are understood. Whatever else stands beside the state dict is left out, what
stands in it is refused, and nothing that the file names is ever called.
"""

from __future__ import annotations

import functools
import io
import json
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from ..errors import UserError
from .pickles import ByteReader, Name, PickleError, Unread, read_pickle

_DTYPES = {
    "BFloat16Storage": jnp.bfloat16,
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "ShortStorage": np.int16,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Where checkpoints of training scripts keep the state dict; the first of these that holds tensors is taken.
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "backbone", "encoder"),
    *("model_ema", "ema_state_dict", "state_dict_ema", "ema", "weights", "params"),
)
_OPTIMIZERS = ("optimizer", "optimizer_states", "optimizer_state_dict", "optim", "scheduler", "lr_schedulers", "scaler")
_MAX_DEPTH = 8
_MAX_DIMENSIONS = 32
# Arrays may share storages, as tied layers do. More than twice the file is no network but a trap.
MAX_EXPANSION = 2
_SMALL = 1 << 16  # bytes that are never too many


class StateDictError(UserError, ValueError):
    """A file that is damaged, is no state dict, or asks for more than tensors."""


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by their names, in the file's dtypes and PyTorch's layout.

    Args:
      path: a `.safetensors` file, or a file that `torch.save` wrote (zip format, or the older one before 1.6). The
        state dict may lie in a training checkpoint, under "state_dict", "model", "net" and the like, also one below
        the other, or under any key if it is the only one there. What is left out is logged.

    Raises:
      FileNotFoundError: there is no such file.
      StateDictError: the file is truncated or damaged, is of another kind, its state dict holds other objects than
        tensors or several could be meant, or its arrays would take more than twice the file's size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise StateDictError(f"{path} is truncated or no safetensors file ({error}); get it again") from error
    # NumPy has no such number; the library says it in several ways.
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StateDictError(
            f"{path} holds {_unknown_dtypes(path)}; save it in float32, float16 or bfloat16"
        ) from error


def _unknown_dtypes(path: Path) -> str:
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    known = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
    found = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} - known
    return f"arrays of the type {', '.join(sorted(found))}" if found else "arrays that NumPy cannot hold"


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    """The format since PyTorch 1.6: a stored zip with `data.pkl` and one member for each storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            # A compressed member could unpack to any size, and so could several that lie in the same place.
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise StateDictError(f"{path} has compressed members, which torch.save never writes")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise StateDictError(f"{path} is damaged: its members are larger than the file")
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise StateDictError(f"{path} is a zip archive, but not one that torch.save wrote")
            folder = pickles[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
                raise StateDictError(f"{path} was written on a big-endian machine; save it as .safetensors there")
            tensors = _state_dict(path, _unpickle(path, io.BytesIO(archive.read(pickles[0]))))
            return _arrays(path, tensors, lambda key: archive.read(f"{folder}data/{key}"))
    # What a directory that lies leads to comes as any of these.
    except (
        *(zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError, OSError, ValueError),
        *(OverflowError, struct.error),
    ) as error:
        if isinstance(error, UserError):
            raise
        raise StateDictError(f"{path} is damaged ({error}); get it again") from error


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    """The format before PyTorch 1.6: five pickles, then each storage as a count and its bytes."""
    with path.open("rb") as file:
        start = file.read(4)
        if start.startswith(b"PK\x03\x04"):
            raise StateDictError(f"{path} is truncated: the zip archive has no directory at its end; get it again")
        if not start.startswith(b"\x80"):
            raise StateDictError(f"{path} is neither a .safetensors file nor one that torch.save wrote")
        # Mapped, a count that lies gets no memory.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _read_mapped(path, mapped)


def _read_mapped(path: Path, file: mmap.mmap) -> dict[str, np.ndarray]:
    used: dict[str, np.dtype | str] = {}  # every storage's dtype, or what is not understood of it
    if _unpickle(path, file) != _LEGACY_MAGIC:
        raise StateDictError(f"{path} is a pickle, but not one that torch.save wrote")
    _protocol, system = _unpickle(path, file), _unpickle(path, file)
    content, keys = _unpickle(path, file, used), _unpickle(path, file)
    if not isinstance(system, dict) or not system.get("little_endian", True) or not isinstance(keys, list):
        raise StateDictError(f"{path} was written on a big-endian machine, or is damaged")
    tensors = _state_dict(path, content)
    places: dict[str, tuple[int, int]] = {}
    for key in map(_key, keys):
        dtype = used.get(key, np.dtype(np.uint8))
        if isinstance(dtype, str):
            raise StateDictError(
                f"{path} holds numbers of the type {dtype}, which are not read; save the weights alone"
            )
        header = file.read(8)
        count = struct.unpack("<q", header)[0] if len(header) == 8 else -1
        start, size = file.tell(), count * dtype.itemsize
        if count < 0 or start + size > file.size():
            raise StateDictError(f"{path} is truncated: it ends within the storage {key!r}; get it again")
        places[key] = (start, size)
        file.seek(start + size)
    if missing := sorted({tensor.storage.key for tensor in tensors.values()} - places.keys()):
        raise StateDictError(f"{path} is damaged: the storages {missing[:5]} are missing; get it again")

    def read(key: str) -> bytes:
        start, size = places[key]
        return file[start : start + size]

    return _arrays(path, tensors, read)


def _key(key: Any) -> str:
    if not isinstance(key, str | int):
        raise StateDictError("a storage's key is neither a text nor a number")
    return str(key)


def _unpickle(path: Path, file: ByteReader, used: dict[str, np.dtype | str] | None = None) -> Any:
    """A pickle with records in the place of tensors. `used` takes the dtype of every storage that it names."""

    def storage(identity: tuple) -> _Storage | Unread:
        _kind, kind, key, _device, _count, *_view = identity
        known = isinstance(kind, Name) and kind.module == "torch" and kind.name in _DTYPES
        if used is not None:
            used[_key(key)] = np.dtype(_DTYPES[kind.name]) if known else Unread(kind).name
        return _Storage(np.dtype(_DTYPES[kind.name]), _key(key)) if known else Unread(kind)

    try:
        return read_pickle(file, _build, storage, 200_000 + path.stat().st_size // 32)
    except PickleError as error:
        if error.ends_early:
            raise StateDictError(f"{path} is truncated: its pickle ends too early; get it again") from error
        raise StateDictError(f"{path} is damaged: its pickle cannot be read ({error})") from error


def _build(function: Name, arguments: tuple) -> Any:
    if function == ("collections", "OrderedDict"):
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []  # as Python 2 wrote them
        return {pair[0]: pair[1] for pair in pairs if isinstance(pair[0], str)}
    if function == ("torch._utils", "_rebuild_tensor_v2"):
        return _tensor(*arguments[:4])
    if function in (("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state")):
        return arguments[0] if isinstance(arguments[0], _Tensor) else Unread(function)
    if function == ("torch._tensor", "_rebuild_from_type_v2") and isinstance(arguments[0], Name):
        inner, _kind, inner_arguments, *_state = arguments
        if inner.module == "torch._utils" and isinstance(inner_arguments, tuple):
            return _build(inner, inner_arguments)
    return Unread(function)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor | Unread:
    if isinstance(storage, Unread):
        return storage
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions and {len(strides)} strides")
    if not all(type(each) is int for each in numbers):
        raise ValueError("a tensor whose shape is no numbers")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _state_dict(path: Path, content: Any) -> dict[str, _Tensor]:
    """The state dict in a file's content: the content itself or what lies under a usual key."""
    keys, found = [], content
    while (key := _step_in(path, found, len(keys))) is not None:
        keys.append(key)
        left_out = [str(other) for other in found if other != key]
        found = found[key]
        if left_out:
            logging.info("%s: the weights are those under %r; left out: %s", path, key, _shortened(left_out))
    if isinstance(found, Unread | Name):
        raise StateDictError(f"{path} is refused: {_asks_for(found)}")
    if not isinstance(found, Mapping) or not found:
        raise StateDictError(f"{path} holds no state dict but {type(found).__name__}")
    others = []
    for name, value in found.items():
        if isinstance(value, Unread | Name):
            raise StateDictError(f"{path} is refused: for {_short(name)!r} {_asks_for(value)}")
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            others.append((_short(name), type(value).__name__))
    if len(others) == len(found):
        name, kind = others[0]
        raise StateDictError(f"{path} holds no state dict: {name!r} is {kind}, not a tensor")
    if others:
        logging.info("%s: left out, as they are no tensors: %s", path, _shortened([name for name, _ in others]))
    return {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, _Tensor)}


def _step_in(path: Path, content: Any, depth: int) -> str | None:
    """The key under which the state dict lies; None: it is `content` itself, or there is none."""
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return None
    holding = [
        key
        for key, value in content.items()
        if isinstance(key, str) and key not in _OPTIMIZERS and _holds_tensors(value, depth)
    ]
    for key in _WRAPPERS:
        if key in holding:
            return key
    if any(isinstance(value, _Tensor) for value in content.values()) or not holding:
        # A network that was saved whole is an object; it would be left out and something else be missed.
        unread = [value for key, value in content.items() if key in _WRAPPERS and isinstance(value, Unread)]
        if unread and not any(isinstance(value, _Tensor) for value in content.values()):
            raise StateDictError(f"{path} is refused: {_asks_for(unread[0])}")
        return None
    if len(holding) > 1:
        raise StateDictError(
            f"{path} holds several sets of weights, under {_shortened(holding)}; save the one that is meant alone"
        )
    return holding[0]


def _holds_tensors(content: Any, depth: int) -> bool:
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return False
    return any(isinstance(value, _Tensor) for value in content.values()) or any(
        _holds_tensors(value, depth + 1)
        for key, value in content.items()
        if isinstance(key, str) and key not in _OPTIMIZERS
    )


def _asks_for(value: Unread | Name) -> str:
    name = value.name if isinstance(value, Unread) else str(value)
    return (
        f"it asks for {name}, but only tensors are read, since unpickling anything else can run code. "
        "Save the state dict alone, or as .safetensors"
    )


def _short(name: object) -> str:
    return str(name)[:80] if isinstance(name, str | int | float | bytes) else type(name).__name__


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(ascii(_short(name)) for name in names[:5]) + more


def _arrays(path: Path, tensors: Mapping[str, _Tensor], read: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    """Copies each tensor out of its storage, after a check that it lies within."""
    wanted = sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in tensors.values())
    if wanted > MAX_EXPANSION * path.stat().st_size + _SMALL:
        raise StateDictError(f"{path} is damaged: its arrays would take {wanted:,} bytes, far more than the file")
    arrays, read = {}, functools.lru_cache(maxsize=1)(read)
    # By storage, so that one at a time is in memory; then in the file's order again.
    for name, (storage, offset, shape, strides) in sorted(tensors.items(), key=lambda item: item[1].storage.key):
        values = read(storage.key)
        values = np.frombuffer(values, storage.dtype, count=len(values) // storage.dtype.itemsize)
        # Along an axis of one place nothing is stepped, whatever its stride says.
        strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides, strict=True))
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if min(offset, *shape, *strides, 0) < 0 or math.prod(shape) > values.size or last >= values.size > 0:
            raise StateDictError(f"{path} is damaged: {_short(name)!r} of shape {shape} reaches outside its storage")
        steps = [stride * storage.dtype.itemsize for stride in strides]
        arrays[name] = np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()
    return {name: arrays[name] for name in tensors}
