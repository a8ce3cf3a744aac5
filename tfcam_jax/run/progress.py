"""What a person sees of a run while it trains: a bar on a terminal, elsewhere a line per epoch, and what to do next."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from ..devices.distributed import is_first

_SHARED = frozenset({"train/alpha", "train/loss"})  # of `metric_window.summarize_shares` and `summarize_weights`
_COUNT = "_examples"  # of a term's mean in the scalars of `metric_window.summarize`
_LABELS = {"auroc": "AUROC", "accuracy": "accuracy", "cross_entropy": "cross-entropy"}


class Progress:
    """Tells of one run, in its first process; a context manager, which closes the bar.

    Text goes to stdout, at once even where that is a file, and the bar to stderr. Without a terminal at both, each
    epoch is a line.

    Args:
      title: of the bar.
      epochs: of the run.
      alpha: weight of cross-entropy in the loss; None where it is the only term, or the scalars tell
        (`metric_window.summarize_shares`, `summarize_weights`).
      select_by: the validation figure that the best epoch is chosen by.
      quiet: say nothing.
    """

    def __init__(self, title: str, epochs: int, alpha: float | None, select_by: str, quiet: bool = False):
        self._title, self._epochs, self._alpha, self._select_by = title, epochs, alpha, select_by
        self._speaks = is_first() and not quiet
        self._lines = self._speaks and not (sys.stdout.isatty() and sys.stderr.isatty())
        self._bar = tqdm(disable=True)
        self._shown: dict[str, str] = {}
        self._total = self._told = 0
        self._begin_epoch()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        """Prints lines now; above the bar, if there is one."""
        if self._speaks:
            tqdm.write(text)
            sys.stdout.flush()

    def start(self, step: int, steps_per_epoch: int, epoch: int = 0, batch: int = 0, pending: int = 0) -> None:
        """Begins to count, from `step` on; says so where that is not 0, or nothing is left to do.

        `epoch` epochs are over and `batch` steps of the next one. The last `pending` of them are in no line of metrics
        yet: `advance` will have their losses.
        """
        total = self._total = self._epochs * steps_per_epoch
        logged, self._told = batch - pending, step - pending
        if epoch == self._epochs:
            self.say(f"All {self._epochs} epochs have been trained before.")
        elif step:
            rest = f", whose losses below leave out the first {logged} of {steps_per_epoch} steps" if logged else ""
            self.say(f"Going on from step {step} of {total}, in epoch {epoch + 1} of {self._epochs}{rest}.")
        disable = None if self._speaks else True  # None: unless it is a terminal
        self._bar = tqdm(total=total, initial=step, desc=self._title, unit="step", disable=disable, dynamic_ncols=True)
        self._begin_epoch()

    def advance(self, step: int, epoch: int, scalars: Mapping[str, float | None]) -> None:
        """Takes the means of the steps up to `step`, as `metric_window.summarize` gives them; epochs count from 1."""
        for key in scalars:
            if key.endswith(_COUNT):
                mean, count = scalars[key.removesuffix(_COUNT)] or 0.0, scalars[key] or 0.0
                name = key.removeprefix("train/").removesuffix(_COUNT)
                total, examples = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = total + mean * count, examples + count
        for name in _SHARED.intersection(scalars):
            self._found[name] = self._found.get(name, 0.0) + (scalars[name] or 0.0) * (step - self._told)
        self._steps, self._told = self._steps + step - self._told, step
        self._bar.update(step - self._bar.n)
        self._show(epoch=f"{epoch}/{self._epochs}", loss=_decimal(self._loss(), 3))

    def end_epoch(self, epoch: int, step: int, validation: Mapping[str, float | None], best: bool) -> None:
        """Tells of an epoch, numbered from 1, that has been validated; `best`: none before was better."""
        names = ["auroc", "accuracy", *(["cross_entropy"] if self._select_by == "cross_entropy" else [])]
        told = {_LABELS[name]: _decimal(validation[name], 3) for name in names}
        self._show(**{f"val {label}": value for label, value in told.items()}, **({"best": str(epoch)} if best else {}))
        if self._lines:
            number = f"epoch {epoch:{len(str(self._epochs))}}/{self._epochs}"
            figures = ", ".join(f"{label} {value}" for label, value in told.items())
            parts = [number, f"step {step:{len(str(self._total))}}", self._losses(), f"val {figures}"]
            parts += [f"{time.monotonic() - self._since:.1f} s"]
            parts += [f"best {_LABELS[self._select_by]} so far"] if best else []
            self.say("  ".join(parts))
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._found: dict[str, float] = {}  # sums over the epoch's steps so far
        self._steps = 0
        self._since = time.monotonic()

    def _show(self, **figures: str) -> None:
        self._shown |= figures
        self._bar.set_postfix(self._shown)

    def _means(self) -> dict[str, float | None]:
        """Of each term, cross-entropy first: JAX sorts them by name."""
        ordered = sorted(self._sums.items(), key=lambda term: term[0] != "cross_entropy")
        return {name: total / count if count else None for name, (total, count) in ordered}

    def _loss(self) -> float | None:
        """The total of the epoch's means so far; None for terms that `alpha` alone does not weigh."""
        if self._found:
            return self._found["train/loss"] / self._steps
        means = self._means()
        cross_entropy, *guidance = means.values() if "cross_entropy" in means else [None]
        if cross_entropy is None or len(guidance) > 1 or (guidance and self._alpha is None):
            return None
        alpha = 1.0 if self._alpha is None else self._alpha
        return alpha * cross_entropy + (1 - alpha) * sum(value or 0.0 for value in guidance)

    def _losses(self) -> str:
        terms = ", ".join(f"{name.replace('_', '-')} {_decimal(value, 4)}" for name, value in self._means().items())
        alpha = f", alpha {_decimal(self._found['train/alpha'] / self._steps, 3)}" if self._found else ""
        return f"loss {_decimal(self._loss(), 4)} ({terms}{alpha})" if terms else "loss -"


def _decimal(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def next_steps(workdir: Path) -> str:
    """Where the run is, and the commands that look at it, as a shell takes them."""
    return (
        f"\nRun: {workdir} (results.json, scores.csv, metrics.jsonl, tensorboard/, checkpoints/)\n"
        f"Next, the whole protocol, and a page of maps that shows where each decision comes from:\n"
        f"  {launch_command('evaluate.py', workdir)}\n  {launch_command('explain.py', workdir)}"
    )


def launch_command(name: str, workdir: Path) -> str:
    """A launch script's command for a run, with this interpreter, beside the script that runs now if that is one."""
    script = Path(sys.argv[0])
    folder = script.parent if script.parent.name == "launch" else Path("launch")
    interpreter, path, run = (
        shlex.quote(word) for word in (_shortest(sys.executable), str(folder / name), str(workdir))
    )
    return f"{interpreter} {path} --workdir={run}"


def _shortest(executable: str) -> str:
    """The interpreter as seen from the working directory, where it lies below it."""
    path = Path(executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else executable
