"""Reading pickles as data: numbers, texts and containers come out, and nothing that a pickle names is ever called.

A pickle is a program for a small stack machine, and Python's own runs whatever it names. The one here knows the same
instructions. Where the program names a class or a function it gets a `Name`, and what it makes of one is what the
caller's `build` says or, for everything else, an `Unread` that stands in its place. So a training checkpoint can be
read whose optimiser, configuration and callbacks mean nothing here, and a hostile one has nothing to run.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

_MARK = object()
# Their reads take no memory for bytes that are not there, as those of an open file do.
ByteReader = io.BytesIO | mmap.mmap
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_VALUES = frozenset(
    (
        *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_KEYS = (str, bytes, int, float, bool, type(None))


class PickleError(ValueError):
    """Bytes that are no pickle, or one that does not add up. `ends_early`: the bytes end within it."""

    def __init__(self, reason: str, ends_early: bool = False):
        super().__init__(reason)
        self.ends_early = ends_early


class Name(NamedTuple):
    """A class or function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        """Escaped and short: a file can name what a terminal would obey."""
        return f"{self.module}.{self.name}".encode("unicode_escape").decode()[:100]


class Unread:
    """Stands for an object that was not made."""

    def __init__(self, name: object):
        """`name`: a `Name`, or a description."""
        # Of anything else, a text could be as long as it likes.
        self.name = str(name) if isinstance(name, Name | str) else "an object"


def read_pickle(
    file: ByteReader,
    build: Callable[[Name, tuple], Any],
    storage: Callable[[tuple], Any] = lambda _: Unread("an id"),
    max_instructions: int = 200_000,
) -> Any:
    """What the pickle at the file's position holds; the position is then behind it.

    Args:
      file: the bytes, at the pickle's start.
      build: what a call of a named function with these arguments gives. It is handed every call in the pickle.
      storage: what a persistent id, which `torch.save` writes for the place of a tensor's numbers, stands for.
      max_instructions: bounds time and memory; an instruction of one byte makes an object of up to 64. A network with
        its optimiser's state takes ten to a hundred thousand.

    Returns:
      Numbers, texts, bytes, None, lists, tuples and dicts of such, what `build` and `storage` gave, and `Unread`s.
      Sets come as lists. A dict's key that is neither number nor text becomes an `Unread`.

    Raises:
      PickleError: the bytes are no whole pickle, or `build` raised ValueError or TypeError.
    """
    try:
        return _Machine(build, storage).run(file, max_instructions)
    except PickleError:
        raise
    # Stack and memo are Python's own lists and dicts, which tell a program that takes more than there is.
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError, UnicodeError) as error:
        reason = f"{type(error).__name__}: {str(error)[:100]}"
        raise PickleError(reason, ends_early=not _holds_more(file)) from error


def _holds_more(file: ByteReader) -> bool:
    return bool(file.read(1))


class _Machine:
    """The stack machine of pickles up to protocol 5."""

    def __init__(self, build: Callable[[Name, tuple], Any], storage: Callable[[tuple], Any]):
        self.build, self.storage = build, storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: ByteReader, max_instructions: int) -> Any:
        for count, (name, argument) in enumerate(_instructions(file)):
            if count > max_instructions:
                raise PickleError(f"more than {max_instructions:,} instructions")
            if name == "STOP":
                return self.stack.pop()
            self.step(name, argument)
        raise PickleError("no end", ends_early=True)

    def step(self, name: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        if name in _VALUES:
            # Longer integers than a file's sizes need none; some take long to print.
            push(Unread("an integer") if isinstance(argument, int) and argument.bit_length() > 128 else argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            push(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name == "MARK":
            push(_MARK)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            push(tuple([pop() for _ in range(int(name[-1]))][::-1]))
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            items = self.pop_mark()
            push(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = self.pop_mark()
            push({})
            self.set_items(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items([pop(-2), pop()] if name == "SETITEM" else self.pop_mark())
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [pop()] if name == "APPEND" else self.pop_mark()
            if isinstance(self.stack[-1], list):
                self.stack[-1].extend(items)
        elif name == "GLOBAL":
            push(Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            names = [pop(-2), pop()]
            if not all(isinstance(each, str) for each in names):
                raise PickleError("a name that is no text")
            push(Name(*names))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = pop(-2), pop()
            push(self.call(function, arguments))
        elif name == "NEWOBJ_EX":
            function, _arguments, _keywords = pop(-3), pop(-2), pop()
            push(Unread(function))
        elif name == "INST":
            push(self.call(Name(*argument.split(" ", 1)), tuple(self.pop_mark())))
        elif name == "OBJ":
            function, *arguments = self.pop_mark()
            push(self.call(function, tuple(arguments)))
        elif name == "BUILD":
            pop()  # attributes, which nothing here has
        elif name in ("BINPERSID", "PERSID"):
            identity = pop() if name == "BINPERSID" else argument
            push(self.storage(identity) if isinstance(identity, tuple) else Unread("an id"))
        elif name == "DUP":
            push(self.stack[-1])
        elif name == "POP":
            pop()
        elif name == "POP_MARK":
            self.pop_mark()
        elif name in ("EXT1", "EXT2", "EXT4"):
            push(Unread("an extension"))
        elif name not in ("PROTO", "FRAME"):
            raise PickleError(f"the instruction {name}")

    def pop_mark(self) -> list[Any]:
        """What lies above the last mark, taken off with it."""
        # From the top: in one that is nested deeply, most marks have a short way.
        position = len(self.stack) - 1
        while self.stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise PickleError("no mark")
        items = self.stack[position + 1 :]
        del self.stack[position:]
        return items

    def set_items(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # A tuple of tuples of tuples may take years to hash.
                self.stack[-1][key if type(key) in _KEYS else Unread("a key")] = value

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            return Unread(function.name if isinstance(function, Unread) else "an object")
        return self.build(function, arguments)


def _instructions(file: ByteReader) -> Iterator[tuple[str, Any]]:
    for opcode, argument, _position in pickletools.genops(cast("io.BytesIO", file)):
        yield opcode.name, argument
