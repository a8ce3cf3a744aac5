"""What the launch scripts share: the path to `configs`, and errors that a user can mend without their traceback."""

import os
import sys
from collections.abc import Callable
from logging import LogRecord
from pathlib import Path

from absl import app, flags, logging

# Compiled programs are kept between runs: a second start is fast. The variable's own value wins.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "tfcam_jax" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # config files import `configs.default`

from tfcam_jax.data.pipeline import WorkerError
from tfcam_jax.data.source import DataError
from tfcam_jax.devices.distributed import DistributedError, end_with_others, initialize
from tfcam_jax.experiment import ConfigError
from tfcam_jax.explanation import ReportError
from tfcam_jax.metrics.scores import ScoresError
from tfcam_jax.metrics.thresholds import SelectionError
from tfcam_jax.models.state_dicts import StateDictError
from tfcam_jax.models.weights import WeightsError
from tfcam_jax.run.checkpoints import CheckpointError
from tfcam_jax.run.files import WorkdirError
from tfcam_jax.run.interruption import StoppedError
from tfcam_jax.run.metric_window import NonFiniteError
from tfcam_jax.run.metrics_log import MetricsError
from tfcam_jax.study.compare import FailedRunsError
from tfcam_jax.study.statistics import StudyError

EXPECTED = (
    CheckpointError,
    ConfigError,
    DataError,
    DistributedError,
    FailedRunsError,
    MetricsError,
    NonFiniteError,
    ReportError,
    ScoresError,
    SelectionError,
    StateDictError,
    StudyError,
    WeightsError,
    WorkdirError,
    WorkerError,
)


def run(main: Callable[[], object], several_processes: bool = False) -> None:
    """Parses flags and calls `main`. An expected error goes to stderr as one message, with exit status 1.

    Args:
      main: the script's work.
      several_processes: whether it can be shared by several processes; if so, it gets the flags that join them.
    """
    if several_processes:
        flags.DEFINE_string("coordinator_address", None, "host:port of process 0; found by itself on a cluster.")
        flags.DEFINE_integer("num_processes", None, "Processes over all hosts; 1: stay alone.", lower_bound=1)
        flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
        flags.DEFINE_integer("heartbeat_seconds", 10, "All end when one is silent for so long.", lower_bound=2)

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; a config value is set as --config.key=value")
        logging.set_verbosity(logging.WARNING)  # Orbax tells each file at the level above
        logging.get_absl_logger().addFilter(_without_traceback)
        try:
            if several_processes:
                values = flags.FLAGS
                initialize(
                    values.coordinator_address, values.num_processes, values.process_id, values.heartbeat_seconds
                )
            main()
        except EXPECTED as error:
            sys.exit(f"error: {error}")
        except StoppedError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)

    app.run(lambda argv: end_with_others(lambda: guarded(argv)), flags_parser=_parse)


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
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # ml_collections hands on the repr of a message, which hides its line end.
        message = str(error).strip("\"'").replace("\\n", "\n").replace("\\'", "'")
        sys.exit(f"error: {message}\nRun with --help for the flags; configs/default.py holds every config key.")
    return remaining
