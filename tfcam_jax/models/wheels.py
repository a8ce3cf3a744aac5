"""Weights that an installed package of the Python Package Index carries as a file. Nothing of it is imported."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError


class WheelError(UserError, ValueError):
    """An installed package without the file that it should carry, or with another one under its name."""


class Wheel(NamedTuple):
    """A package and the file in it.

    Attributes:
      package: its name, as pip knows it.
      file: path below the folder that packages are installed in.
      sha256: of the file, in hexadecimal.
      install: arguments of `pip install` that bring it.
    """

    package: str
    file: str
    sha256: str
    install: str


def digest_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def find_in_wheel(wheel: Wheel) -> Path | None:
    """The installed file, once its checksum is right; None where the package is not installed.

    Raises:
      WheelError: the file is not there or has another checksum; both are named, and how to get it again.
    """
    try:
        path = Path(str(importlib.metadata.distribution(wheel.package).locate_file(wheel.file)))
    except importlib.metadata.PackageNotFoundError:
        return None
    again = f"Get it again: pip install --force-reinstall {wheel.install}"
    if not path.is_file():
        raise WheelError(f"{wheel.package} is installed, but its file {path} is missing. {again}")
    found = digest_file(path)
    if found != wheel.sha256:
        raise WheelError(
            f"{path} of {wheel.package} is not the file that was published: its SHA-256 is\n"
            f"  {found}, and should be\n  {wheel.sha256}.\n{again}"
        )
    return path
