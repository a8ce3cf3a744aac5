"""Files that hold one array: NumPy's, MATLAB's and NIfTI."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from .decode import choose_page

Size = tuple[int, int]  # height, width
_NIFTI_1, _NIFTI_2 = 348, 540  # bytes of the header, which its first number says
_BUT_FOR_WHOLE_PIXELS = 1


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
    try:
        array = np.load(io.BytesIO(encoded), allow_pickle=False)
    except Exception as error:  # NumPy raises whatever it stumbles over.
        raise ValueError(f"not a NumPy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of NumPy arrays; name it .npz")
    choose_page(1, page)
    return array, False


def _read_npz(encoded: bytes, size: Size, page: int | None) -> tuple[np.ndarray, bool]:
    try:
        with np.load(io.BytesIO(encoded), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # As above; also a single array, which is no context.
        raise ValueError(f"not an archive of NumPy arrays ({error})") from error
    choose_page(1, page)
    return _only_map(arrays), False


def _read_mat(encoded: bytes, size: Size, page: int | None) -> tuple[np.ndarray, bool]:
    from scipy import io as scipy_io  # half a second of every start otherwise

    if encoded.startswith(b"MATLAB 7.3"):
        raise ValueError("a MATLAB file of version 7.3 (HDF5); save it with the option '-v7'")
    try:
        content = scipy_io.loadmat(io.BytesIO(encoded))
    except Exception as error:  # As above.
        raise ValueError(f"not a MATLAB file ({error})") from error
    choose_page(1, page)
    return _only_map({name: value for name, value in content.items() if not name.startswith("__")}), False


def _only_map(arrays: Mapping[str, Any]) -> np.ndarray:
    """The one array that can be a map: two axes, none of length 1, of numbers."""
    maps = [name for name, array in arrays.items() if _may_be_map(array)]
    if len(maps) == 1:
        return arrays[maps[0]]
    held = ", ".join(f"{name} {list(np.shape(array))}" for name, array in arrays.items()) or "nothing"
    raise ValueError(f"must hold one array [h, w] of numbers; holds {held}: save the map alone")


def _may_be_map(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.ndim == 2 and min(array.shape) > 1 and array.dtype.kind in "buif"


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
        content = gzip.decompress(encoded) if encoded[:2] == b"\x1f\x8b" else encoded
        two = _NIFTI_2 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
        file: Any = (nibabel.Nifti2Image if two else nibabel.Nifti1Image).from_bytes(content)
        array = np.asanyarray(file.dataobj)
        affine, codes = file.affine, aff2axcodes(file.affine)
    except Exception as error:  # As above.
        raise ValueError(f"not a NIfTI file ({error})") from error
    array = np.atleast_3d(np.squeeze(array))
    if array.ndim != 3:
        raise ValueError(f"a NIfTI file of shape {array.shape}; must hold slices [x, y, z]")
    array = array[..., choose_page(array.shape[-1], page)]
    directions = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    if np.allclose(directions, np.eye(3)):
        rows_first = _fits(array.shape, size)
        return (array if rows_first else array.T), rows_first
    for axis, code in enumerate(codes[:2]):
        if code in ("R", "A", "S"):
            array = np.flip(array, axis)
    return array.T, False


def _fits(shape: tuple[int, ...], size: Size) -> bool:
    return abs(shape[0] * size[1] - shape[1] * size[0]) < max(size) * _BUT_FOR_WHOLE_PIXELS


ARRAYS: Mapping[str, Callable[[bytes, Size, int | None], tuple[np.ndarray, bool]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".mat": _read_mat,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
}
