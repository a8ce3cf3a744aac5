"""Files that lie about themselves, blow up or never end, and config values beyond their range; all made here."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

Maker = Callable[[random.Random], Any]
# A file that is no regular one is made by its maker, which then takes the path.
Special = Callable[[Path], None]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, extra: bytes = b"", colour: int = 0) -> bytes:
    """A PNG of one byte a pixel that says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), extra, _chunk(b"IDAT", zlib.compress(pixels)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _picture(kind: str, *size: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()


def _lying_jpeg(rng: random.Random) -> bytes:
    content = bytearray(_picture("JPEG", 16, 16))
    place = content.find(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", rng.randint(20000, 65500), rng.randint(20000, 65500))
    return bytes(content)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path)


_NO_FILES: dict[str, Maker] = {
    "a FIFO": lambda rng: _fifo,
    "a link to /dev/zero": lambda rng: _device,
    "a folder": lambda rng: _folder,
    "a link to itself": lambda rng: _loop,
    "nothing": lambda rng: b"",
    "noise": lambda rng: rng.randbytes(rng.randint(1, 5000)),
    "zeros": lambda rng: bytes(rng.randint(1, 5000)),
}
_PICTURES: dict[str, Maker] = {
    "PostScript": lambda rng: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n",
    "PDF": lambda rng: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF\n",
    "SVG": lambda rng: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/hostname'/></svg>",
    "a page": lambda rng: b"<html><script>alert(1)</script></html>",
    "a wide PNG": lambda rng: png(2**31 - 1, 1, b""),
    "a PNG of no pixels": lambda rng: png(0, rng.randint(0, 9), b""),
    "a PNG bomb": lambda rng: png(rng.randint(20000, 40000), 20000, bytes(2**22)),
    "a PNG with a long text": lambda rng: png(8, 8, bytes(72), _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**27)))),
    "a PNG cut short": lambda rng: _picture("PNG", 32, 32)[: rng.randint(10, 60)],
    "a JPEG that lies about its size": _lying_jpeg,
    "a PPM that lies about its size": lambda rng: b"P6 %d %d 255\n" % (rng.randint(10000, 13000), 13000),
    "a BMP that lies about its size": lambda rng: _picture("BMP", 4, 4)[:18] + struct.pack("<ii", 30000, 30000),
    "a TIFF of many pages": lambda rng: b"II*\0" + struct.pack("<IHHHII", 8, 1, 256, 3, 1, 8) + struct.pack("<I", 8),
    "gzip": lambda rng: zlib.compress(bytes(2**20)),
    "DICOM of nothing": lambda rng: bytes(128) + b"DICM" + rng.randbytes(100),
}


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    """An NPY file whose header says what it likes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def _array(values: Any, dtype: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values, dtype))
    return file.getvalue()


_ARRAYS: dict[str, Maker] = {
    "an NPY that lies about its shape": lambda rng: npy("'<f4'", f"({10 ** rng.randint(5, 9)}, 1000000)", bytes(64)),
    "an NPY of 8 GB": lambda rng: npy("'<f8'", "(100000, 10000)", bytes(64)),
    "an NPY of a negative shape": lambda rng: npy("'<f4'", "(-4, -4)", bytes(64)),
    "an NPY that runs code": lambda rng: npy("__import__('os').abort()", "(1,)"),
    "an NPY of objects": lambda rng: npy("'|O'", "(1,)", pickle.dumps([0])),
    "an NPY of text": lambda rng: npy("'<U4'", "(4, 4)", bytes(256)),
    "an NPY of NaN": lambda rng: _array(np.full((32, 32), np.nan), np.float32),
    "an NPY of infinity": lambda rng: _array(np.full((32, 32), np.inf), np.float64),
    "an NPY of complex numbers": lambda rng: _array(np.ones((32, 32)), np.complex64),
    "an NPY of five axes": lambda rng: _array(np.ones((1, 1, 1, 4, 4)), np.float32),
    "an NPY of negative numbers": lambda rng: _array(-np.eye(32), np.float32),
    "an NPY of no places": lambda rng: _array(np.ones((0, 5)), np.float32),
}


def _marks(**entry: Any) -> bytes:
    return json.dumps([{"image": "images/train0.png", **entry}]).encode()


def _rle(size: Any, counts: Any) -> bytes:
    return _marks(masks=[{"size": size, "counts": counts}])


def _deep(rng: random.Random) -> bytes:
    left, right = rng.choice((("[", "]"), ('{"a":', "}")))
    depth = rng.randint(50_000, 200_000)
    return (left * depth + ("1" if left != "[" else "") + right * depth).encode()


def _coco(images: Any, annotations: Any) -> bytes:
    return json.dumps({"images": images, "annotations": annotations, "categories": []}).encode()


_IMAGES = [{"id": 1, "file_name": "images/train0.png"}]
# Of what a value of JSON can be, those that are no number.
_NO_NUMBERS: tuple[Any, ...] = (None, "x", [], {}, [1], True)
_TABLES: dict[str, Maker] = {
    "an RLE of 3e9": lambda rng: _rle([3 * 10**9, 1], [0, 3 * 10**9]),
    "an RLE of 2^70": lambda rng: _rle([2**35, 2**35], [0, 2**70]),
    "an RLE of a negative size": lambda rng: _rle([-32, -32], [0, 1024]),
    "an RLE of no size": lambda rng: _rle(rng.choice(_NO_NUMBERS), [1024]),
    "an RLE of odd counts": lambda rng: _rle([32, 32], rng.choice((None, {}, [[1]], "\u00e9", "P" * 300_000))),
    "deep JSON": _deep,
    "an integer of many digits": lambda rng: (
        b'[{"image": "images/train0.png", "boxes": [[1%s, 0, 1, 1]]}]' % (b"0" * rng.choice((400, 5000)))
    ),
    "numbers that are none": lambda rng: (
        b'[{"image": "images/train0.png", "boxes": [[%s, 0, 4, 4]]}]'
        % rng.choice((b"NaN", b"Infinity", b"-Infinity", b"1e400"))
    ),
    "a box of anything": lambda rng: _marks(boxes=rng.choice((None, 5, "x", [5], [[1, 2]], {"a": 1}))),
    "a box of a negative size": lambda rng: _marks(boxes=[[4, 4, -3, 3]]),
    "entries that are none": lambda rng: json.dumps(rng.choice((None, 5, "x", [None], [[]], [5]))).encode(),
    "COCO of no images": lambda rng: _coco(rng.choice((None, 5, ["x"], {"a": 1})), []),
    "COCO of no annotations": lambda rng: _coco(_IMAGES, rng.choice((5, ["x"], {"a": 1}, [5]))),
    "COCO of an odd number": lambda rng: _coco([{"id": [1], "file_name": "images/train0.png"}], [{"image_id": [1]}]),
    "COCO of an odd box": lambda rng: _coco(_IMAGES, [{"image_id": 1, "bbox": rng.choice(("0011", None, [1], {}))}]),
    "COCO of an odd shape": lambda rng: _coco(
        _IMAGES, [{"image_id": 1, "segmentation": rng.choice((5, [1, 2], [["x"]]))}]
    ),
}
_CELL: dict[str, Maker] = {
    "a long cell": lambda rng: b"split,label,image\ntrain,dark," + b"x" * 2**24 + b"\n",
    "UTF-16": lambda rng: "split,label,image\ntrain,dark,images/train0.png\n".encode("utf-16"),
    "NUL": lambda rng: b"split,label,image\ntrain,dark,images/tr\0ain0.png\n",
    "a path that leaves the folder": lambda rng: (
        b"split,label,image\ntrain,dark,"
        + rng.choice((b"../../../etc/passwd", b"/etc/passwd", b"images/../../x.png"))
        + b"\n"
    ),
    "a column twice": lambda rng: b"split,label,image,label\ntrain,dark,images/train0.png,bright\n",
    "no header": lambda rng: b"train,dark,images/train0.png\n",
    "a header alone": lambda rng: b"split,label,image,map\n",
    "an open quote": lambda rng: b'split,label,image\ntrain,dark,"images/train0.png\n',
    "a row of many cells": lambda rng: b"split,label,image\n" + b"a," * 100_000 + b"\n",
    "a split that is none": lambda rng: b"split,label,image\ntraining,dark,images/train0.png\n",
}


def _safetensors(header: Any, data: bytes = bytes(64), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype: str, shape: Any, offsets: Any) -> bytes:
    return _safetensors({"conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


def _torch(body: bytes, data: bytes = bytes(64), compression: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes, with a pickle of one's own in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/data/0", data)
    return file.getvalue()


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _integer(value: int) -> bytes:
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def _tensor(count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, storage: str = "0") -> bytes:
    numbers = lambda values: b"(" + b"".join(map(_integer, values)) + b"t"
    stored = (
        b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(storage) + _text("cpu") + _integer(count) + b"tQ"
    )
    built = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + _integer(offset) + numbers(shape) + numbers(strides)
    return built + b"\x89ccollections\nOrderedDict\n)RtR"


def _named(*tensors: bytes) -> bytes:
    return b"}(" + b"".join(_text(f"layer{i}.weight") + each for i, each in enumerate(tensors)) + b"u"


def _nested(depth: int) -> bytes:
    """A tuple of ten of ten of ...: 10**depth places in few bytes."""
    body = b"K\x01q\x00"
    for i in range(depth):
        body += b"0(" + 10 * (b"h" + bytes([i])) + b"tq" + bytes([i + 1])
    return body


class _Aborts:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


_WEIGHTS: dict[str, Maker] = {
    "a pickle that runs code": lambda rng: pickle.dumps({"w": _Aborts()}, rng.randint(0, 4)),
    "a pickle that runs code, in an archive": lambda rng: _torch(pickle.dumps({"w": _Aborts()}, 2)[2:-1]),
    "a shape beyond the storage": lambda rng: _torch(_named(_tensor(16, (2 ** rng.randint(20, 60), 4), (0, 0)))),
    "a stride of 2^62": lambda rng: _torch(_named(_tensor(16, (2, 4), (2**62, 1)))),
    "an offset beyond the storage": lambda rng: _torch(_named(_tensor(16, (1,), (1,), 2 ** rng.randint(5, 62)))),
    "a negative stride": lambda rng: _torch(_named(_tensor(16, (4,), (-1,), 3))),
    "many axes": lambda rng: _torch(_named(_tensor(16, (1,) * 70, (1,) * 70))),
    "a storage used many times": lambda rng: _torch(_named(*[_tensor(2**18, (2**18,), (1,))] * 2000), bytes(2**20)),
    "a storage of another folder": lambda rng: _torch(_named(_tensor(16, (2,), (1,), 0, "../../etc/passwd"))),
    "a memo index": lambda rng: _torch(b"K\x01r" + struct.pack("<I", 2**31 - rng.randint(1, 9))),
    "a text of 4 GB": lambda rng: _torch(b"X" + struct.pack("<I", 2**32 - 1) + b"x"),
    "bytes of 8 GB": lambda rng: _torch(b"\x96" + struct.pack("<Q", 2**33) + b"x"),
    "nested tuples": lambda rng: _torch(b"}(" + _text("a") + _nested(9) + b"u"),
    "nested tuples as a name": lambda rng: _torch(b"}(" + _nested(9) + b"K\x01u"),
    "a compressed member": lambda rng: _torch(_named(_tensor(16, (4,), (1,))), bytes(2**27), zipfile.ZIP_DEFLATED),
    "an archive of nothing": lambda rng: _torch(b"}"),
    "a header of 2^62 bytes": lambda rng: _safetensors({}, length=2 ** rng.randint(30, 62)),
    "a deep header": lambda rng: _safetensors(b"[" * 100_000),
    "tensors that overlap": lambda rng: _safetensors(
        {name: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for name in ("a", "b")}
    ),
    "a shape that is no shape": lambda rng: _entry("F32", rng.choice(([-4, -4], "x", None, [2**62, 4])), [0, 64]),
    "offsets beyond the file": lambda rng: _entry("F32", [16], [0, 2 ** rng.randint(8, 62)]),
    "numbers of 8 and 4 bits": lambda rng: _entry(rng.choice(("F8_E4M3", "F8_E5M2", "F4", "F6_E2M3")), [64], [0, 64]),
    "HDF5 cut short": lambda rng: b"\x89HDF\r\n\x1a\n" + rng.randbytes(rng.randint(1, 2000)),
}
FILES: dict[str, dict[str, Maker]] = {
    "image": _NO_FILES | _PICTURES,
    "map": _NO_FILES | _PICTURES | _ARRAYS,
    "table": _NO_FILES | _TABLES,
    "manifest": _NO_FILES | _CELL,
    "weights": _NO_FILES | _WEIGHTS,
}
_SUFFIXES = {"image": (".png", ".jpg"), "map": (".png", ".npy"), "weights": (".pth", ".safetensors", ".h5", ".pt")}
WEIGHTS = "weights"


def put(folder: Path, kind: str, rng: random.Random) -> tuple[str, str]:
    """Puts a hostile file of a kind in place of a sound one below a case's folder; returns its path and what it is."""
    how = rng.choice(sorted(FILES[kind]))
    if kind == "weights":
        path = folder / f"{WEIGHTS}{rng.choice(_SUFFIXES[kind])}"
    elif kind == "table":
        path = folder / "data/maps/table.json"
        _name_table(folder / "data/manifest.csv", "maps/table.json")
    elif kind == "manifest":
        path = folder / "data/manifest.csv"
    else:
        suffix = ".npy" if how in _ARRAYS else rng.choice(_SUFFIXES[kind])
        path = rng.choice(sorted((folder / f"data/{kind}s").glob(f"*{suffix}")))
    path.unlink(missing_ok=True)
    content = FILES[kind][how](rng)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return str(path.relative_to(folder)), how


def _name_table(manifest: Path, table: str) -> None:
    """Makes a table the map of every image of training."""
    with manifest.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows(
            [header, *([*row[:3], table, *row[4:]] if row[0] == "train" else row for row in rows)]
        )


# What a value of each type is replaced by. Sizes that the machine could just hold are left out: they may take long.
_VALUES: dict[type, tuple[Any, ...]] = {
    bool: (),
    int: (-1, 0, -(2**70), 2**70, 10**18, 3, 2.5, float("nan"), "x", True),
    float: (-1.0, 0.0, 2.0, -1e300, 1e300, float("nan"), float("inf"), -float("inf"), "x", True),
    str: ("", "x", "../x", "$x_", "a\nb", "\x1b[31m", "x" * 5000),
    tuple: ((), ("x",), ("x", "x"), (1,), (float("nan"),) * 3, "x", (-1.0, 2.0)),
}
# Not of a run, or valid, and then a run takes as long as they say.
_NOT_TRIED: dict[str, tuple[Any, ...]] = {"epochs": (3, 10**18, True), "data.image_size": (3,)}


def value_of(config: Any, rng: random.Random) -> tuple[str, Any]:
    """A key of a config, with dots, and a value that is odd for its type."""
    types = {key: kind for key, kind in _types(config) if _VALUES.get(kind) and not key.startswith("compare.")}
    key = rng.choice(sorted(types))
    return key, rng.choice([value for value in _VALUES[types[key]] if value not in _NOT_TRIED.get(key, ())])


def _types(config: Any, path: str = "") -> Iterator[tuple[str, type]]:
    for key in config:
        kind = config.get_type(key)
        if issubclass(kind, ConfigDict):
            yield from _types(config[key], f"{path}{key}.")
        else:
            yield f"{path}{key}", kind
