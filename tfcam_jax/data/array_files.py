"""Files that hold one array: NumPy's, MATLAB's and NIfTI."""

from __future__ import annotations

import gzip
import io
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .bounds import TooLargeError, take_pixels
from .decode import PageError, choose_page
from .source import shorten

Size = tuple[int, int]  # height, width
_NIFTI_1, _NIFTI_2 = 348, 540  # bytes of the header, which its first number says
_BUT_FOR_WHOLE_PIXELS = 1
_LARGEST_UNPACKED = 2**29  # bytes
_MOST_ARRAYS, _SHOWN = 1000, 20  # of a file
# MATLAB's classes of numbers.
_MATLAB = {
    name: np.dtype(name) for name in ("double", "single", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)))
}
_MATLAB["logical"] = np.dtype(bool)
# NumPy's headers are Python literals, and CPython 3.11 fails now and then where two threads parse such at once. Nobody
# waits for room (`take_pixels`) while it is held: who has the room may need it.
_PARSING = threading.Lock()


def suffix_of(name: str) -> str:
    """The suffix that tells a format, in small letters: ".png", also ".nii.gz"."""
    path = PurePosixPath(name.lower())
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def read_array(encoded: bytes, suffix: str, size: Size, page: int | None) -> tuple[np.ndarray, bool]:
    """The array of a file by its suffix, one of `ARRAYS`, rows by columns as far as that can be known.

    `size` and `page` as of `map_files.read_map_file`; only NIfTI has pages. Returns whether the rows of a NIfTI slice
    without an orientation were taken to come first. Raises ValueError: not such a file, or not one array in it.
    """
    return ARRAYS[suffix](encoded, size, page)


def _read_npy(encoded: bytes, size: Size, page: int | None) -> tuple[np.ndarray, bool]:
    if encoded.startswith(b"PK"):
        raise ValueError("an archive of NumPy arrays; name it .npz")
    try:
        _check_claim(io.BytesIO(encoded))
        with _PARSING:
            array = np.load(io.BytesIO(encoded), allow_pickle=False)
    except TooLargeError:
        raise
    except Exception as error:  # NumPy raises whatever it stumbles over.
        raise ValueError(f"not a NumPy array ({error})") from error
    choose_page(1, page)
    return array, False


def _check_claim(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a NumPy file, once they are known to be no more than is read."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"version {version} is for records, not for a map")
    with _PARSING:
        shape, _, dtype = read_header[version](file)
    if dtype.hasobject:
        raise ValueError("objects, which could run code")
    take_pixels(*shape)
    return shape, dtype


def _read_npz(encoded: bytes, size: Size, page: int | None) -> tuple[np.ndarray, bool]:
    try:
        with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            held = {}
            for name in members[:_MOST_ARRAYS]:
                with archive.open(name) as member:
                    held[name.removesuffix(".npy")] = _Held(*_check_claim(member))
            chosen = _only_map(held)
            with archive.open(f"{chosen}.npy") as member, _PARSING:
                array = np.lib.format.read_array(member, allow_pickle=False)
    except (TooLargeError, _NotOneError):
        raise
    except Exception as error:  # As above.
        raise ValueError(f"not an archive of NumPy arrays ({error})") from error
    choose_page(1, page)
    return array, False


def _read_mat(encoded: bytes, size: Size, page: int | None) -> tuple[np.ndarray, bool]:
    from scipy import io as scipy_io  # half a second of every start otherwise

    if encoded.startswith(b"MATLAB 7.3"):
        raise ValueError("a MATLAB file of version 7.3 (HDF5); save it with the option '-v7'")
    try:
        listed = scipy_io.whosmat(io.BytesIO(encoded))
        held = {name: _Held(shape, _MATLAB.get(kind)) for name, shape, kind in listed[:_MOST_ARRAYS]}
        chosen = _only_map(held)
        take_pixels(*held[chosen].shape)
        array = scipy_io.loadmat(io.BytesIO(encoded), variable_names=[chosen])[chosen]
    except (TooLargeError, _NotOneError):
        raise
    except Exception as error:  # As above.
        raise ValueError(f"not a MATLAB file ({error})") from error
    choose_page(1, page)
    return array, False


class _Held(NamedTuple):
    """An array of a file before it is read; no dtype: no array of numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype | None

    @property
    def may_be_map(self) -> bool:
        kind = "" if self.dtype is None else self.dtype.kind
        return len(self.shape) == 2 and min(self.shape) > 1 and kind in tuple("buif")


class _NotOneError(ValueError):
    """A file that doesn't hold one map."""


def _only_map(held: Mapping[str, _Held]) -> str:
    """Name of the one array that can be a map: two axes, none of length 1, of numbers."""
    maps = [name for name, array in held.items() if array.may_be_map]
    if len(maps) == 1:
        return maps[0]
    told = ", ".join(shorten([f"{name} {list(array.shape)}" for name, array in held.items()], _SHOWN)) or "nothing"
    raise _NotOneError(f"must hold one array [h, w] of numbers; holds {told}: save the map alone")


def _read_nifti(encoded: bytes, size: Size, page: int | None) -> tuple[np.ndarray, bool]:
    """A slice, lying as its image does.

    Axes are x, y, z. Where the file says how they lie in the body, the slice is turned as films are shown: the
    patient's left, back and feet are right and down. Where it does not, as in arrays saved from Python with an identity
    matrix, the array is taken as it is: rows by columns if that has the image's aspect ratio, else columns by rows.
    """
    try:
        import nibabel
        from nibabel.orientations import aff2axcodes
    except ModuleNotFoundError as error:
        raise ValueError("a NIfTI file; reading it needs nibabel: pip install nibabel") from error
    try:
        content = _unpack(encoded) if encoded[:2] == b"\x1f\x8b" else encoded
        two = _NIFTI_2 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
        file: Any = (nibabel.Nifti2Image if two else nibabel.Nifti1Image).from_bytes(content)
        array = _slice(file.dataobj, page)
        affine, codes = file.affine, aff2axcodes(file.affine)
    except (TooLargeError, PageError):
        raise
    except Exception as error:  # As above.
        raise ValueError(f"not a NIfTI file ({error})") from error
    directions = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    if np.allclose(directions, np.eye(3)):
        rows_first = _fits(array.shape, size)
        return (array if rows_first else array.T), rows_first
    for axis, code in enumerate(codes[:2]):
        if code in ("R", "A", "S"):
            array = np.flip(array, axis)
    return array.T, False


def _unpack(encoded: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(encoded)) as file:
        content = file.read(_LARGEST_UNPACKED + 1)
    if len(content) > _LARGEST_UNPACKED:
        raise TooLargeError(f"more than {_LARGEST_UNPACKED >> 20} MiB when unpacked; save the one slice, or unpack it")
    return content


def _slice(values: Any, page: int | None) -> np.ndarray:
    """The page [x, y] of an array that is read as far as it is asked for; axes of length 1 don't count."""
    axes = [axis for axis, count in enumerate(values.shape) if count != 1]
    if len(axes) > 3:
        raise ValueError(f"shape {values.shape}; must hold slices [x, y, z]")
    place: list[int | slice] = [0] * len(values.shape)
    for axis in axes[:2]:
        place[axis] = slice(None)
    index = choose_page(values.shape[axes[2]] if len(axes) == 3 else 1, page)
    if len(axes) == 3:
        place[axes[2]] = index
    take_pixels(*(values.shape[axis] for axis in axes[:2]))
    array = np.asanyarray(values[tuple(place)])
    return array if array.ndim == 2 else array.reshape(1, -1)


def _fits(shape: tuple[int, ...], size: Size) -> bool:
    return abs(shape[0] * size[1] - shape[1] * size[0]) < max(size) * _BUT_FOR_WHOLE_PIXELS


ARRAYS: Mapping[str, Callable[[bytes, Size, int | None], tuple[np.ndarray, bool]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".mat": _read_mat,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
}
