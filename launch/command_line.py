"""What the launch scripts share: the path to `configs`, and errors that a user can mend without their traceback.

Nothing here imports jax before a script's work begins, so that help and a misspelt flag are told at once.
"""

import _thread
import contextlib
import io
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from logging import Formatter, LogRecord
from pathlib import Path
from types import FrameType
from typing import Any

try:
    from absl import app, flags, logging
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed; the scripts need the extra [train]: pip install -e '.[train]'")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # config files import `configs.default`
sys.path.append(str(Path.cwd()))  # for a network of one's own, model.name=my_net:build; last, so that it hides nothing

from tfcam_jax.errors import UserError
from tfcam_jax.run.garbage import collect_rarely
from tfcam_jax.run.terminal import escape_streams

collect_rarely()


def _ensure_home() -> None:
    """Gives a user without a home folder, as in containers, one for caches; libraries look for it as well."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = home = tempfile.mkdtemp(prefix="tfcam_jax-home-")
        print(f"warning: no home folder is known here, caches go to {home}: set HOME to keep them", file=sys.stderr)


_ensure_home()
# Compiled programs are kept between runs: a second start is fast. The variable's own value wins.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "tfcam_jax" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# So are traced ones. An empty value keeps none.
os.environ.setdefault("TFCAM_JAX_STEPS_DIR", str(Path.home() / ".cache" / "tfcam_jax" / "steps"))

# What ml_collections says, among more, of a --config that is not there.
_MISSING_CONFIG = re.compile(
    r"Failed loading config file .*\s(\S+)\s+\[Errno 2\] No such file or directory: '\1'", re.DOTALL
)

# From a signal to the end, at most.
_SECONDS_TO_STOP = 20.0


def define_accept_changed_data() -> Any:
    """The flag of all scripts that go on from earlier work."""
    told = "Go on though the data are not those that the run was trained on; what differs is told."
    return flags.DEFINE_bool("accept_changed_data", False, told)


def run(main: Callable[[], object], several_processes: bool = False) -> None:
    """Parses flags and calls `main`. An error that a user can mend goes to stderr as one message.

    Args:
      main: the script's work.
      several_processes: whether it can be shared by several processes; if so, it gets the flags that join them.
    """
    if several_processes:
        flags.DEFINE_string("coordinator_address", None, "host:port of process 0; found by itself on a cluster.")
        flags.DEFINE_integer("num_processes", None, "Processes over all hosts; 1: stay alone.", lower_bound=1)
        flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
        flags.DEFINE_integer("heartbeat_seconds", 10, "All end when one is silent for so long.", lower_bound=2)

    def guarded() -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax tells each file at the level above
        logging.get_absl_logger().addFilter(_without_traceback)
        logging.get_absl_handler().setFormatter(_Plain())
        if isinstance(sys.stdout, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # of a descriptor that was changed beneath it
                sys.stdout.reconfigure(errors="backslashreplace")  # what its encoding has not
        escape_streams()
        with _told():
            if several_processes:
                _join_processes()
            main()
            sys.stdout.flush()

    def begin(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; a config value is set as --config.key=value")
        from tfcam_jax.devices.distributed import end_with_others

        end_with_others(guarded)

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    _catch_signals()
    with _told():
        app.run(begin, flags_parser=_parse)


class _Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C, where no work is saved step by step; training has its own, `run.interruption`."""

    def __init__(self, number: int):
        super().__init__()
        self.signal = signal.Signals(number)


def _catch_signals() -> None:
    """The first SIGTERM or Ctrl-C ends the work, which takes away what is half-written; a second one ends at once.

    A signal that the process ignores stays ignored.
    """
    numbers = [each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) is not signal.SIG_IGN]

    def stop(number: int, frame: FrameType | None) -> None:
        if _is_within(frame, unraisable):  # which would swallow it
            return send_again(number)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        # Some libraries catch everything, and threads may go on: then this ends them.
        _later(_SECONDS_TO_STOP, os._exit, 128 + number)
        raise _Stopped(number)

    def send_again(number: int) -> None:
        _later(0.05, os.kill, os.getpid(), number)

    def unraisable(told: "sys.UnraisableHookArgs") -> None:
        """Garbage collection and the like swallow what is raised in them; the signal is then sent once more."""
        if not isinstance(told.exc_value, _Stopped):
            return sys.__unraisablehook__(told)
        number = told.exc_value.signal
        signal.signal(number, stop)
        send_again(number)

    sys.unraisablehook = unraisable
    for each in numbers:
        signal.signal(each, stop)


def _is_within(frame: FrameType | None, function: Callable[..., object]) -> bool:
    while frame and frame.f_code is not function.__code__:  # type: ignore[attr-defined]
        frame = frame.f_back
    return frame is not None


def _later(seconds: float, function: Callable[..., object], *arguments: object) -> None:
    """Calls a function in a thread that nothing waits for.

    `threading`'s own threads take a lock as they start; the code that a signal interrupts may hold it.
    """
    _thread.start_new_thread(lambda: (time.sleep(seconds), function(*arguments)), ())


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Ends with a line, and the exit code that belongs to it, in place of the traceback of what is no fault of ours."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}" if error.exit_code == 1 else error, file=sys.stderr)
        sys.exit(error.exit_code)
    except _Stopped as error:
        told = "nothing is half-written; the same command goes on, or begins anew."
        print(f"stopped by {error.signal.name}: {told}", file=sys.stderr)
        sys.exit(128 + error.signal)
    except BrokenPipeError:
        _leave_stdout()
        sys.exit("error: whoever read the output has left; the rest of it is lost")
    except OSError as error:
        if error.errno is None:
            raise
        _leave_stdout()
        sys.exit(f"error: {error.strerror}" + (f": {error.filename}" if error.filename else ""))


def _leave_stdout() -> None:
    """Sends what is still buffered nowhere: else the interpreter fails over it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _join_processes() -> None:
    from tfcam_jax.devices.distributed import initialize

    values = flags.FLAGS
    initialize(values.coordinator_address, values.num_processes, values.process_id, values.heartbeat_seconds)


class _Plain(Formatter):
    """`warning: photos: 3 hidden files are left out`, without time, thread and line of code."""

    def format(self, record: LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def _without_traceback(record: LogRecord) -> bool:
    """Orbax logs an error with its traceback before it raises it."""
    record.exc_info = None
    return True


def _parse(argv: list[str]) -> list[str]:
    try:
        remaining = flags.FLAGS(argv)
        for name in flags.FLAGS:
            # A config file that could not be loaded says so only when something is asked of it.
            getattr(flags.FLAGS[name].value, "is_locked", None)
    except BrokenPipeError:
        raise
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        message = str(error)
        if missing := _MISSING_CONFIG.search(message):
            sys.exit(f"error: there is no config file {missing[1]}; those of the project lie in configs/.")
        if message[:1] == message[-1:] and message[:1] in ("'", '"'):
            # ml_collections hands on the repr of a message, which hides its line end; such a message begins with a key.
            message = message[1:-1].replace("\\n", "\n").replace("\\'", "'")
            message = f"no config key {message}" if message.startswith("'") else message
        sys.exit(f"error: {message}\nRun with --help for the flags; configs/default.py holds every config key.")
    return remaining
