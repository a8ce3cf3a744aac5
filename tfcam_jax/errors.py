"""Errors that a user can mend, how a wrong name is told, and how any name is shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

# What a terminal obeys or nobody sees: controls, marks that turn the direction of writing, halves of characters.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str, keep: str = "") -> str:
    r"""Text with its hidden characters as escapes, such as \n, \x1b and \u202e, but for those to keep."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


class UserError(Exception):
    """What a user can put right: a wrong value, file or folder, a full disk. Its message says which, and how.

    Launch scripts print the message of these and no traceback, and end with the exit code.
    """

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A value, of a config key or an argument, that names nothing, lies outside its range or does not fit others."""


class WorkdirError(UserError, RuntimeError):
    """A folder that can't serve as this run's, or a file in it that can't be read or written."""


class OutputError(WorkdirError):
    """A place that can't be written to, that holds something else, or that another process is writing to."""


def check_known(kind: str, value: object, known: Iterable[object]) -> None:
    """Raises ConfigError, with the nearest known name, unless `value` is among `known`."""
    names = [str(each) for each in known]
    if str(value) not in names:
        raise ConfigError(f"{kind} is {value!r}.{did_you_mean(str(value), names)} Known: {', '.join(names)}.")


def check_ranges(section: str, options: object, limits: Mapping[str, float]) -> None:
    """Raises ConfigError unless each of these attributes lies between 0 and its limit."""
    for name, limit in limits.items():
        if not 0 <= getattr(options, name) <= limit:
            raise ConfigError(f"{section}.{name} must be in [0, {limit}]; got {getattr(options, name)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of the known names; "" if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
