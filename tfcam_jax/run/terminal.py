"""What scripts print: names in it are data, which no terminal obeys."""

from __future__ import annotations

import sys
from typing import Any

from ..errors import visible

# Of line ends and progress bars.
_OURS = "\n\r\t"


def escape_streams() -> None:
    """From here on what is written to stdout and stderr is as `errors.visible` shows it, but for `_OURS`."""
    sys.stdout, sys.stderr = (_escaped(stream) for stream in (sys.stdout, sys.stderr))


def _escaped(stream: Any) -> Any:
    return stream if isinstance(stream, _Escaped) else _Escaped(stream)


class _Escaped:
    """A stream that escapes what it is given, and else is the one that it writes to."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(visible(text, keep=_OURS))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
