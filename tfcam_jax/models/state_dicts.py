"""Reading PyTorch state dicts from `.safetensors` and `.pth` files, without PyTorch.

A `.pth` file is a pickle, and unpickling can run any code. Here an unpickler that knows five names reads it: tensors,
their storages and `OrderedDict`. Anything else in the file is refused, and nothing that it holds is ever called.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ..errors import UserError

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
# Where checkpoints of training scripts keep the state dict.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


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
        state dict may lie under "state_dict" or "model" in a training checkpoint, and its names may all begin with
        "module." (DataParallel), which is taken off.

    Raises:
      FileNotFoundError: there is no such file.
      StateDictError: the file is truncated or damaged, is of another kind, or holds other objects than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            arrays = safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise StateDictError(f"{path} is truncated or no safetensors file ({error}); get it again") from error
    elif zipfile.is_zipfile(path):
        arrays = _read_zip(path)
    else:
        with path.open("rb") as file:
            arrays = _read_legacy(path, file)
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    """The format since PyTorch 1.6: a stored zip with `data.pkl` and one member for each storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise StateDictError(f"{path} is a zip archive, but not one that torch.save wrote")
            folder = pickles[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise StateDictError(f"{path} was written on a big-endian machine; save it as .safetensors there")
            # A compressed member could unpack to any size; torch.save never compresses.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise StateDictError(f"{path} has compressed members, which torch.save never writes")
            tensors = _tensors(path, _unpickle(path, io.BytesIO(archive.read(pickles[0]))))
            return _arrays(path, tensors, lambda key: archive.read(f"{folder}data/{key}"))
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise StateDictError(f"{path} is damaged ({error}); get it again") from error


def _read_legacy(path: Path, file: io.BufferedReader) -> dict[str, np.ndarray]:
    """The format before PyTorch 1.6: five pickles, then each storage as a count and its bytes."""
    start = file.peek(4)
    if start.startswith(b"PK\x03\x04"):
        raise StateDictError(f"{path} is truncated: the zip archive has no directory at its end; get it again")
    if not start.startswith(b"\x80"):
        raise StateDictError(f"{path} is neither a .safetensors file nor one that torch.save wrote")
    if _unpickle(path, file) != _LEGACY_MAGIC:
        raise StateDictError(f"{path} is a pickle, but not one that torch.save wrote")
    _protocol, system, content, keys = (_unpickle(path, file) for _ in range(4))
    if not isinstance(system, dict) or not system.get("little_endian", True) or not isinstance(keys, list):
        raise StateDictError(f"{path} was written on a big-endian machine, or is damaged")
    tensors = _tensors(path, content)
    sizes = {tensor.storage.key: tensor.storage.dtype.itemsize for tensor in tensors.values()}
    storages = {}
    for key in map(str, keys):
        header = file.read(8)
        count = struct.unpack("<q", header)[0] if len(header) == 8 else -1
        size = count * sizes.get(key, 0)
        if count < 0 or size > path.stat().st_size or len(data := file.read(size)) < size:
            raise StateDictError(f"{path} is truncated: it ends within the storage {key!r}; get it again")
        storages[key] = data
    if missing := sizes.keys() - storages.keys():
        raise StateDictError(f"{path} is damaged: the storages {sorted(missing)} are missing; get it again")
    return _arrays(path, tensors, storages.__getitem__)


class _Unpickler(pickle.Unpickler):
    """Knows the five names that a state dict needs, and returns records instead of PyTorch's objects."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
        }
        if (module, name) not in known:
            raise StateDictError(
                f"it asks for {module}.{name}, but only tensors are read, since unpickling anything else can run code. "
                "Save the state dict alone, or as .safetensors"
            )
        return known[module, name]

    def persistent_load(self, pid: tuple) -> _Storage:
        _kind, type_name, key, _device, _count, *_view = pid
        return _Storage(np.dtype(_DTYPES[type_name]), str(key))

    # Bound methods, since a pickle can set attributes of the objects it names, and of these it cannot.
    def _rebuild_tensor(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_unused: Any) -> _Tensor:
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise ValueError(f"a tensor of shape {shape} and strides {strides} in {storage}")
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))

    def _rebuild_parameter(self, tensor: _Tensor, *_unused: Any) -> _Tensor:
        return tensor


def _unpickle(path: Path, file: io.BufferedIOBase) -> Any:
    try:
        return _Unpickler(file).load()
    except StateDictError as error:
        raise StateDictError(f"{path} is refused: {error}") from error
    except EOFError as error:
        raise StateDictError(f"{path} is truncated: its pickle ends too early; get it again") from error
    # A damaged or hostile pickle can fail in any way inside the unpickler.
    except Exception as error:
        raise StateDictError(f"{path} is damaged: its pickle cannot be read ({error!r})") from error


def _tensors(path: Path, content: Any) -> dict[str, _Tensor]:
    """The state dict in a file's content: the content itself or what lies under a usual key."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise StateDictError(f"{path} holds no state dict but {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise StateDictError(f"{path} holds no state dict: {name!r} is {type(tensor).__name__}, not a tensor")
    return dict(content)


def _arrays(path: Path, tensors: Mapping[str, _Tensor], read: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    """Copies each tensor out of its storage, after a check that it lies within."""
    arrays, read = {}, functools.cache(read)
    for name, (storage, offset, shape, strides) in tensors.items():
        data, itemsize = read(storage.key), storage.dtype.itemsize
        values = np.frombuffer(data, storage.dtype, count=len(data) // itemsize)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if min(offset, *shape, *strides, 0) < 0 or math.prod(shape) > values.size or last >= values.size:
            raise StateDictError(f"{path} is damaged: {name!r} of shape {shape} reaches outside its storage")
        steps = [stride * itemsize for stride in strides]
        arrays[name] = np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()
    return arrays
