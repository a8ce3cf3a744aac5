"""Files and folders that commands write: by one process at a time, whole or not at all.

A folder NAME is filled as `.NAME.partial` beside it, and becomes NAME by one rename. `.NAME.partial.lock` is held
meanwhile; its text says that the partial folder is this project's, and who is at it. Both are gone in the end. What a
process left that was killed is taken over by the next one; whatever else has such a name is refused, never touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging
from filelock import FileLock, Timeout

from ..errors import OutputError, UserError
from .paths import local_path

_MARK = "tfcam_jax"
# A file system that knows no locks; what a disk says that takes no more.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def describe_process() -> str:
    """This process as others are told of it."""
    return f"host {socket.gethostname()}, pid {os.getpid()}"


@contextlib.contextmanager
def locked(path: Path, refusal: Callable[[], UserError]) -> Iterator[None]:
    """Holds a lock file, which dies with its holder; raises what `refusal` gives at once if another process does.

    A link in its place is refused: its target is somebody else's. Raises OutputError for that and for a file that can't
    be made.
    """
    with contextlib.ExitStack() as held:
        try:
            if (kind := _kind(path)) not in ("", "a file"):
                raise OutputError(f"{path} is {kind}, where a lock file would be: take it away.")
            held.enter_context(FileLock(path, fallback_to_soft=False).acquire(blocking=False))
        except Timeout as error:
            raise refusal() from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise OutputError(f"{path} can't be written: {error.strerror}. Choose another place.") from error
            logging.warning("%s: this file system has no locks; see to it that one process writes here.", path)
        yield


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Holds the name of a file or folder that is to be written, so that no other process writes it.

    Raises OutputError if another does, who is named, or if what has the names of our unfinished parts is not ours.
    """
    parts, lock = _parts(out), _lock(out)
    holder = lambda: _read(lock).removeprefix(f"{_MARK}: ").strip() or "it is just starting"
    refusal = lambda: OutputError(
        f"another process is writing {out} ({holder()}). Wait for it, stop it, or choose another place."
    )
    with locked(lock, refusal):
        text = _read(lock)
        if text and not text.startswith(_MARK):
            raise OutputError(f"{lock} is not of this project, and a lock file would be there. Choose another place.")
        for part in parts:
            if part.is_symlink() or (part.exists() and not (text and part.is_dir())):
                if not text:
                    lock.unlink()
                raise OutputError(
                    f"{part} is {_kind(part)} that is not of this project, or of an older version of it; it is left as "
                    "it is. Take it away, or choose another place."
                )
        try:
            with _told(out):
                lock.write_text(f"{_MARK}: {describe_process()}\n", encoding="utf-8")
            yield
        finally:
            if not any(map(os.path.lexists, parts)):
                lock.unlink(missing_ok=True)  # while it is held: whoever has it open sees that it is gone


@contextlib.contextmanager
def write_folder(
    out: str | Path, check_replaced: Callable[[Path], None] | None = None, *, keep: bool = False
) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `out` in the end, and holds `out` meanwhile.

    Args:
      out: the folder; absent or empty, unless `check_replaced` lets it be replaced. A link to a folder is followed.
      check_replaced: raises where what `out` holds must not be replaced; None: it must be empty.
      keep: what is in the partial folder stays there if the work ends early, and is there the next time.

    Raises:
      OutputError: `out` can't be written, is a file, holds something else, also if that came while the folder was
        filled, or another process is writing it.
    """
    out = resolve_folder(out)
    partial, old = _parts(out)
    with _parents(out), claimed(out):
        with _told(out):
            _recover(out, old)
            _check_free(out, check_replaced)
            if not keep:
                _remove(partial)
            partial.mkdir(exist_ok=True)
        try:
            with _told(out, partial):
                yield partial
                _check_free(out, check_replaced)  # meanwhile somebody else may have put something there
                if out.exists() and any(out.iterdir()):
                    out.rename(old)
                elif out.exists():
                    out.rmdir()
                partial.rename(out)
        except BaseException:
            _recover(out, old)
            if not keep or not any(partial.iterdir()):
                _remove(partial)
            raise
        _remove(old)


def resolve_folder(out: str | Path) -> Path:
    """The whole path of a folder to write, links followed.

    Raises OutputError for a file, a link that leads nowhere, the folder that the user stands in, or a mount point:
    these can't be replaced by a rename.
    """
    named = local_path(out, "--out")
    with _told(named):
        path = Path(os.path.realpath(named))
        kind = _kind(path)
        if not kind and named.is_symlink() and not _lock(path).exists():  # nor is another process replacing it
            raise OutputError(f"{named} is a link to {os.readlink(named)}, which is not there. Give that as --out.")
        if kind not in ("", "a folder"):
            raise OutputError(f"{named} is {kind}; give a folder as --out.")
        try:
            here = os.path.samefile(path, os.curdir)
        except FileNotFoundError:  # it is not there yet, or is being replaced by another process
            here = False
    if here or os.path.ismount(path):
        what = "the folder that you are in" if here else "a mount point"
        raise OutputError(f"{named} is {what}, which can't be replaced: give a folder in it, as --out={path / 'out'}")
    return path


def resolve_file(out: str | Path, what: str = "--out") -> Path:
    """The whole path of a file to write, links followed, its folder made if need be.

    Raises OutputError for a folder, a link that leads nowhere, or a place that can't be written to.
    """
    named = local_path(out, what)
    with _told(named):
        if named.is_dir():
            raise OutputError(f"{named} is a folder; give a file as {what}.")
        if named.is_symlink() and not named.exists():
            raise OutputError(f"{named} is a link to {os.readlink(named)}, which is not there. Give that as {what}.")
        if named.exists() and not named.is_file():
            raise OutputError(f"{named} is {_kind(Path(os.path.realpath(named)))}; give a file as {what}.")
        path = Path(os.path.realpath(named))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise OutputError(f"{named} can't be written: its folder takes no files. Choose another place.")
    return path


def only_of(what: str, record: str, *others: str) -> Callable[[Path], None]:
    """For `write_folder`: lets a folder be replaced that holds `record` and of other files none but `others`."""

    def check(out: Path) -> None:
        held = {path.name for path in out.iterdir()}
        foreign = sorted(held - {record, *others}) or sorted(held if record not in held else ())
        if foreign:
            raise OutputError(
                f"{out} holds {foreign[0]}, which is not of {what}, and would be replaced: choose another --out, or "
                "take it away."
            )

    return check


def _lock(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial.lock")


def _parts(out: Path) -> tuple[Path, Path]:
    return out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")


@contextlib.contextmanager
def _parents(out: Path) -> Iterator[None]:
    """Makes the folders above; takes those away again that are empty, if nothing comes of it."""
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        with _told(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _check_free(out: Path, check_replaced: Callable[[Path], None] | None) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    if check_replaced is None:
        raise OutputError(f"{out} exists already and is not empty: give another folder as --out.")
    check_replaced(out)


def _recover(out: Path, old: Path) -> None:
    """Ends, or takes back, a replacement that was cut off between its two renames."""
    if old.exists() and not out.exists():
        old.rename(out)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _read(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8", errors="backslashreplace")
    except FileNotFoundError:
        return ""  # its holder has just ended


def _kind(path: Path) -> str:
    """What lies there, "" if nothing does. Asked once: another process may be putting something there, or away."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return ""
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
    return kinds.get(stat.S_IFMT(mode), "no file")


@contextlib.contextmanager
def _told(out: Path, below: Path | None = None) -> Iterator[None]:
    """Tells what the system refuses; of work that also reads only what concerns its folder `below`, or a full disk."""
    try:
        yield
    except OSError as error:
        if below and error.errno not in _UNWRITABLE and not str(error.filename or "").startswith(str(below)):
            raise
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(out) else ""
        raise OutputError(f"{out} can't be written: {error.strerror or error}{where}. Choose another place.") from error
