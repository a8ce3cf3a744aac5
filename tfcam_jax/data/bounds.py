"""What a file may ask for before anything of it is decoded: which formats, how many pixels, and how much at a time."""

from __future__ import annotations

import io
import math
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from PIL import Image, UnidentifiedImageError

# Formats of pictures that are read; Pillow's others include some that start another program (EPS, Ghostscript).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "AVIF", "JPEG2000", "PPM")
# Of a picture or an array, 8192 x 8192: decoding takes up to 20 bytes of memory for each, and 20 kB may claim more.
LARGEST_PIXELS = 2**26
_LARGEST_FILE = 2**30  # bytes
_MOST_THREADS = 8


class TooLargeError(ValueError):
    """More pixels, or bytes, than are decoded."""


def open_image(encoded: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Pillow's image, only its header read.

    Raises ValueError: of none of the formats, broken, or of more than `LARGEST_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=formats)
    except UnidentifiedImageError as error:
        known = ", ".join(name for name in formats if name != "DIB")
        raise ValueError(f"not an image of a format that is read ({known}); convert it to PNG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        what = str(error).partition(" exceeds")[0].lower()  # image size (900000000 pixels)
        raise TooLargeError(f"too large an image to open safely ({what}); scale it down") from error
    except Exception as error:  # Pillow's parsers raise whatever they stumble over.
        raise ValueError(f"broken image ({error})") from error
    check_pixels(image.width, image.height)
    return image


def check_pixels(*sides: int) -> None:
    """Raises TooLargeError for an image or array of these sides if it has more than `LARGEST_PIXELS`."""
    if min(sides, default=0) < 0 or math.prod(sides) > LARGEST_PIXELS:
        told = " x ".join(f"{side}" for side in sides)
        raise TooLargeError(f"{told} pixels are too many to open safely, at most {LARGEST_PIXELS:,}; scale it down")


def take_pixels(*sides: int) -> None:
    """`check_pixels`, then waits until as many may be decoded (`decoding`)."""
    check_pixels(*sides)
    _room.take(math.prod(sides))


def refuse_no_file(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for what is no regular file, and may never end, or above a gigabyte; OSError: nothing there."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise ValueError(f"{kind}, not a file")
    if status.st_size > _LARGEST_FILE:
        raise ValueError(f"a file of {status.st_size >> 20:,} MiB; at most {_LARGEST_FILE >> 20:,} are read")


class _Room:
    """How many pixels threads hold decoded together.

    A thread that holds some and needs more waits too, unless all that hold any do: then one of them goes on.
    """

    def __init__(self, limit: int):
        self._limit, self._changed = limit, threading.Condition()
        self._held: dict[int, int] = {}  # by thread
        self._waiting: set[int] = set()

    @contextmanager
    def scope(self) -> Iterator[None]:
        me = threading.get_ident()
        if me in self._held:
            yield
            return
        with self._changed:
            self._held[me] = 0
        try:
            yield
        finally:
            with self._changed:
                del self._held[me]
                self._changed.notify_all()

    def take(self, count: int) -> None:
        me = threading.get_ident()
        with self._changed:
            if me not in self._held:
                return
            self._waiting.add(me)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._fits(me, count))
            self._waiting.discard(me)
            self._held[me] += count

    def _fits(self, me: int, count: int) -> bool:
        total = sum(self._held.values())
        running = any(held for thread, held in self._held.items() if thread != me and thread not in self._waiting)
        stuck = not running and (self._held[me] or not total)
        return total + count <= self._limit or bool(stuck)


_room = _Room(LARGEST_PIXELS)


def decoding() -> AbstractContextManager[None]:
    """A context in which what this thread decodes counts until its end.

    Threads in it decode no more than `LARGEST_PIXELS` together, and one picture: others wait. Each process has its own.
    """
    return _room.scope()


def decoding_threads() -> int:
    """How many threads decode files at once: one for each core that this process may use, up to 8."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return min(_MOST_THREADS, len(affinity(0)) if affinity else os.cpu_count() or 1)
