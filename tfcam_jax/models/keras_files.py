"""Reading weights of Keras models from `.keras`, `.weights.h5` and `.h5` files, without Keras.

They come out by the names of Keras' layers, each array under PyTorch's name for its kind and in PyTorch's order of
axes, so that all that follows (prefixes, shapes, conversion) is the same for both. A `.keras` file is a zip archive of
an HDF5 file and a description of the layers, of which only classes and names are read; nothing in it is built or run.

HDF5 files can point to other files, repeat one array under many names and hold a few bytes that unpack to terabytes.
Only what Keras writes is read: hard links, arrays of plain numbers that lie in this file and are not compressed to
less than half.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from .matching import WeightsError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_WEIGHTS_MEMBER, _CONFIG_MEMBER = "model.weights.h5", "config.json"
_MAX_EXPANSION = 2  # of the file's size, as in state_dicts.py
_SMALL = 1 << 16
_MAX_OBJECTS = 50_000
_MAX_DEPTH = 12
# HDF5's numbers of what may have been done to an array's bytes: gzip, shuffle, checksum, lzf.
_FILTERS = frozenset({1, 2, 3, 32000})
# Layers that Keras names itself, with a number that counts those of the whole session.
_COUNTED = re.compile(r"(conv2d|batch_normalization|separable_conv2d|depthwise_conv2d|dense)(?:_(\d+))?")
_OLD_KINDS = {"convolution2d": "conv2d", "batchnormalization": "batch_normalization"}
# The last word of a variable's name, as Keras has written it since its first version -> PyTorch's, and the axes.
_VARIABLE = re.compile(
    r"(?:^|_)(depthwise_kernel|pointwise_kernel|kernel|bias|gamma|beta|(?:moving|running)_(?:mean|variance|std)|W|b)$"
)
_LEAVES = {
    **{"gamma": "weight", "beta": "bias", "bias": "bias", "b": "bias", "kernel": "weight", "W": "weight"},
    **{"moving_mean": "running_mean", "moving_variance": "running_var"},
    **{"running_mean": "running_mean", "running_std": "running_var"},  # which held the variance
    **{"depthwise_kernel": "depthwise.weight", "pointwise_kernel": "pointwise.weight"},
}
# Layers whose variables are numbered: their ranks -> what they are.
_NUMBERED = {
    (4,): ("kernel",),
    (4, 1): ("kernel", "bias"),
    (2,): ("kernel",),
    (2, 1): ("kernel", "bias"),
    (4, 4): ("depthwise_kernel", "pointwise_kernel"),
    (4, 4, 1): ("depthwise_kernel", "pointwise_kernel", "bias"),
    (1, 1, 1): ("beta", "moving_mean", "moving_variance"),
    (1, 1, 1, 1): ("gamma", "beta", "moving_mean", "moving_variance"),
}


class KerasFileError(UserError, ValueError):
    """A Keras file that is damaged or hostile, of a layout that is not read, or that needs h5py."""


class _Network(NamedTuple):
    """A network of `keras.applications`, known by a layer that it alone has.

    Attributes:
      has: pattern of a layer's name.
      lacks: pattern of one that its larger relatives have.
      backbone: the one here that is the same network; None: there is none.
      why: how it differs from the one of its name here.
    """

    title: str
    has: str
    lacks: str
    backbone: str | None
    why: str


_PADS = "it pads after the image alone where a stride of 2 meets an even size, and its BatchNorm's epsilon is 1e-3"
NETWORKS = (
    _Network("Xception", r"block14_sepconv2", r"^$", "xception_keras", _PADS),
    _Network("DenseNet-121", r"conv5_block16_2_conv", r"conv5_block17_.*", "densenet121", ""),
    _Network(
        *("ResNet-50, 101 or 152", r"conv5_block3_3_conv|res5c_branch2c", r"conv5_block3_preact_bn", None),
        "its stride sits in the first 1x1 convolution of a block, not in the 3x3 one, and its convolutions have biases",
    ),
    _Network(
        *("ResNet-50, 101 or 152, version 2", r"conv5_block3_preact_bn", r"^$", None),
        "its blocks begin with BatchNorm and ReLU",
    ),
    _Network("MobileNetV2", r"block_16_project", r"^$", None, _PADS),
    _Network("InceptionV3", r"conv2d_93", r"conv2d_94", None, "its average pooling leaves the padding out"),
)


def is_keras_file(path: Path) -> bool:
    """Whether a file is HDF5, or a zip archive that holds a Keras model: told by its bytes, not by its name."""
    with path.open("rb") as file:
        if file.read(len(_SIGNATURE)) == _SIGNATURE:
            return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS_MEMBER in archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error):  # `read_state_dict` says so
        return False


def check_same_network(path: Path, keys: Iterable[str], name: str) -> None:
    """Refuses the weights of a network of `keras.applications` that is another one than the backbone `name`.

    Names and shapes can agree where what is computed does not. Raises WeightsError, which says what differs and which
    backbone to take.
    """
    layers = {key.split(".")[0] for key in keys}
    for network in NETWORKS:
        has, lacks = (any(re.fullmatch(pattern, layer) for layer in layers) for pattern in (network.has, network.lacks))
        if has and not lacks and network.backbone != name:
            remedy = f"take --config.model.name={network.backbone}" if network.backbone else "no backbone here is it"
            why = f" Keras' is another network than its namesake here: {network.why}." if network.why else ""
            raise WeightsError(f"{path} holds weights of Keras' {network.title}, not of {name}; {remedy}.{why}")


def read_keras_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a Keras model, by names as "block1_conv1.weight".

    Args:
      path: a `.keras` archive; the `.weights.h5` of `save_weights`, of Keras 3.4 or later, which writes layers' names
        into it; or an `.h5` in the older layout of a group for each layer, as `keras.applications` are published.

    Returns:
      Kernels [out, in, h, w] or [out, in], depthwise ones [channels, 1, h, w], vectors; in the file's dtypes. Names
      are those of the layers, whatever models they are nested in. Those that Keras names by a number of its session
      (conv2d_7) are counted anew from 0 by their order. Dense layers are called "head", or "head.0" and so on.

    Raises:
      KerasFileError: the file is damaged, or holds what Keras does not write; its arrays would take more than twice
        its size; it gives no names; h5py is missing.
    """
    path = Path(path)
    h5py = _import_h5py(path)
    try:
        if not zipfile.is_zipfile(path):
            with h5py.File(path, "r") as file:
                return _named(path, _layers(_Reader(path, path.stat().st_size), file))
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            for name in (_WEIGHTS_MEMBER, _CONFIG_MEMBER):
                if name not in members:
                    raise KerasFileError(f"{path} is no Keras model: it holds no {name}")
                if members[name].compress_type != zipfile.ZIP_STORED or members[name].file_size > path.stat().st_size:
                    raise KerasFileError(
                        f"{path} has compressed or damaged members; Keras compresses none: zip with -0"
                    )
            names = _names(path, archive.read(_CONFIG_MEMBER))
            with h5py.File(io.BytesIO(archive.read(_WEIGHTS_MEMBER)), "r") as file:
                return _named(path, _layers(_Reader(path, members[_WEIGHTS_MEMBER].file_size), file, names))
    # What HDF5 says of damaged files comes as any of these.
    except (
        *(OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError, EOFError, OverflowError, MemoryError),
        *(struct.error, zipfile.BadZipFile),
    ) as error:
        if isinstance(error, UserError):
            raise
        raise KerasFileError(f"{path} is damaged, or no Keras file ({str(error)[:200]}); get it again") from error


def _import_h5py(path: Path) -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise KerasFileError(
            f"{path} is a Keras file; reading it needs h5py: pip install 'tfcam_jax[keras]'"
        ) from error
    return h5py


class _Reader:
    """Reads groups and arrays of one file, and no more than it may hold."""

    def __init__(self, path: Path, size: int):
        self.path = path
        self.left = self.allowed = _MAX_EXPANSION * size + _SMALL
        self.objects = 0

    def children(self, group: Any) -> Iterator[tuple[str, Any]]:
        """Names and objects of a group; KerasFileError for links, which could lead anywhere."""
        import h5py

        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise KerasFileError(f"{self.path} is refused: {ascii(name)[:80]} is a link, which Keras never writes")
            self.objects += 1
            if self.objects > _MAX_OBJECTS:
                raise KerasFileError(f"{self.path} is refused: it has more than {_MAX_OBJECTS:,} entries")
            yield name, group[name]

    def groups(self, group: Any) -> dict[str, Any]:
        import h5py

        return {name: child for name, child in self.children(group) if isinstance(child, h5py.Group)}

    def arrays(self, group: Any) -> dict[str, np.ndarray]:
        import h5py

        datasets = {name: child for name, child in self.children(group) if isinstance(child, h5py.Dataset)}
        return {name: self.array(name, dataset) for name, dataset in datasets.items()}

    def array(self, name: str, dataset: Any) -> np.ndarray:
        """A copy of a dataset's numbers, after a look at what it says of itself."""
        is_bfloat16 = dataset.dtype == np.dtype("V2")
        created = dataset.id.get_create_plist()
        if dataset.is_virtual or dataset.external:
            raise KerasFileError(f"{self.path} is refused: the array {ascii(name)[:80]} lies in another place or file")
        if {created.get_filter(i)[0] for i in range(created.get_nfilters())} - _FILTERS:
            raise KerasFileError(f"{self.path} is refused: the array {ascii(name)[:80]} is packed in an unknown way")
        if (not is_bfloat16 and dataset.dtype.kind not in "fiub") or dataset.shape is None or dataset.ndim > 5:
            raise KerasFileError(f"{self.path}: {ascii(name)[:80]} is no array of numbers but {dataset.dtype}")
        # A chunk is unpacked whole, however little of it the array takes.
        chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
        self.left -= math.prod(dataset.shape) * dataset.dtype.itemsize
        if self.left < 0 or chunk > self.allowed:
            raise KerasFileError(f"{self.path} is refused: its arrays would take more than twice the file's size")
        values = np.asarray(dataset[()])
        return values.view(jnp.bfloat16) if is_bfloat16 else values


def _layers(
    reader: _Reader, file: Any, names: Mapping[tuple[str, ...], str] | None = None
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The name and variables of each layer that has any, in whichever layout the file has."""
    top = reader.groups(file)
    if "layers" in top:
        yield from _numbered_layers(reader, top["layers"], names, ())
    elif "_layer_checkpoint_dependencies" in top:
        yield from _numbered_layers(reader, top["_layer_checkpoint_dependencies"], names, ())
    else:
        yield from _named_layers(reader, top.get("model_weights", file), 0)


def _numbered_layers(
    reader: _Reader, group: Any, names: Mapping[tuple[str, ...], str] | None, path: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The layout of Keras 3: a group for each layer by its class, its variables in "vars" by their number."""
    if len(path) > _MAX_DEPTH:
        raise KerasFileError(f"{reader.path} is refused: its groups are nested more than {_MAX_DEPTH} deep")
    for key, layer in reader.groups(group).items():
        parts, here = reader.groups(layer), (*path, key)
        if "layers" in parts:
            yield from _numbered_layers(reader, parts["layers"], names, here)
        variables = reader.arrays(parts["vars"]) if "vars" in parts else {}
        if not variables:
            continue
        name = parts["vars"].attrs.get("name") if names is None else names.get(here)
        if not isinstance(name, str) or len(name) > 200:
            raise KerasFileError(
                f"{reader.path} does not say which layer {'/'.join(here)} is: Keras before 3.4 writes no names into "
                ".weights.h5; save the whole model as .keras"
            )
        yield name, variables


def _named_layers(reader: _Reader, group: Any, depth: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The older layout: variables by their names, in groups of the layers' names, nested in any way."""
    if depth > _MAX_DEPTH:
        raise KerasFileError(f"{reader.path} is refused: its groups are nested more than {_MAX_DEPTH} deep")
    if depth and (variables := reader.arrays(group)):
        yield group.name.rpartition("/")[2], {name.removesuffix(":0"): array for name, array in variables.items()}
    for name, child in reader.groups(group).items():
        if depth or name not in ("optimizer_weights", "top_level_model_weights"):
            yield from _named_layers(reader, child, depth + 1)


def _names(path: Path, config: bytes) -> dict[tuple[str, ...], str]:
    """From a layer's groups in the weights' file to its name, as a model's description gives it.

    Keras calls a layer's group by its class, in small letters, and a number that counts those of a class in one model.
    """
    try:
        description = json.loads(config)
        return dict(_names_of(description["config"]["layers"], ()))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise KerasFileError(f"{path}: its {_CONFIG_MEMBER} lists no layers ({type(error).__name__})") from error


def _names_of(layers: list[dict[str, Any]], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    counts: dict[str, int] = defaultdict(int)
    for layer in layers:
        kind = _snake_case(layer["class_name"])
        here = (*path, f"{kind}_{counts[kind]}" if counts[kind] else kind)
        counts[kind] += 1
        settings = layer["config"]
        yield here, str(settings["name"])
        if isinstance(inner := settings.get("layers"), list):
            yield from _names_of(inner, here)


def _snake_case(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _named(path: Path, layers: Iterator[tuple[str, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Arrays under the layers' names and PyTorch's for their kind, in its order of axes."""
    found: dict[str, np.ndarray] = {}
    by_name = dict[str, dict[str, np.ndarray]]()
    for name, variables in layers:
        if name in by_name:
            raise KerasFileError(f"{path} has two layers of the name {ascii(name)[:80]}")
        by_name[name] = variables
    renamed = _count_anew(by_name)
    dense = [name for name in renamed if any(array.ndim == 2 for array in by_name[name].values())]
    for i, name in enumerate(sorted(dense, key=lambda name: _counted(renamed[name])[1])):
        renamed[name] = f"head.{i}" if len(dense) > 1 else "head"
    for name, variables in by_name.items():
        for kind, array in _kinds(path, name, variables).items():
            axes = {2: (1, 0), 4: (2, 3, 0, 1) if kind == "depthwise_kernel" else (3, 2, 0, 1)}.get(array.ndim)
            key = f"{renamed[name]}.{_LEAVES[kind]}"
            found[key] = array if axes is None else array.transpose(axes)
    if not found:
        raise KerasFileError(f"{path} holds no weights of layers")
    return found


def _count_anew(names: Mapping[str, Any]) -> dict[str, str]:
    """Names as they are, but conv2d_7 and conv2d_9 as conv2d and conv2d_1."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for name in names:
        kind, number = _counted(name)
        if kind:
            numbers[kind].append(number)
    first = lambda own: {number: place for place, number in reversed([*enumerate(sorted(own))])}
    places = {kind: first(own) for kind, own in numbers.items()}
    renamed = {}
    for name in names:
        kind, number = _counted(name)
        place = places[kind][number] if kind else 0
        renamed[name] = name if not kind else f"{kind}_{place}" if place else kind
    return renamed


def _counted(name: str) -> tuple[str, int]:
    """Kind and number of a name that Keras gave; "" and 0 for one that somebody chose."""
    for old, kind in _OLD_KINDS.items():
        name = re.sub(f"^{old}(?=_|$)", kind, name)
    counted = _COUNTED.fullmatch(name)
    return (counted[1], int(counted[2] or 0)) if counted else ("", 0)


def _kinds(path: Path, layer: str, variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A layer's variables by what they are."""
    if all(name.isdecimal() for name in variables):
        arrays = [variables[name] for name in sorted(variables, key=int)]
        kinds = _NUMBERED.get(tuple(array.ndim for array in arrays))
        if kinds is None:
            shapes = ", ".join(str(array.shape) for array in arrays[:5])
            raise KerasFileError(f"{path}: the layer {ascii(layer)[:80]} is of no kind that is read; it has {shapes}")
        return dict(zip(kinds, arrays, strict=True))
    found = {}
    for name, array in variables.items():
        kind = _VARIABLE.search(name)
        if not kind or kind[1] not in _LEAVES:
            raise KerasFileError(f"{path}: {ascii(f'{layer}/{name}')[:80]} is of no kind that is read")
        found[kind[1]] = array
    return found
