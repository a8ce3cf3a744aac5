"""Commands beside each other, stopped, and on disks that are full or read-only: what they leave is whole or nothing."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from stress.runs import small_arguments
from stress.scripts import Ended, Fresh, Limits, Script
from stress.tally import HUNG, REFUSED, RIGHT, UNCLEAR, WRONG, Tally, trials

_STUDY_SECONDS = 240.0
# Children are to be gone so soon after their parent, seconds.
_ORPHAN_SECONDS = 1.0
_STOPPED = {signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}
_CHUNKS = (("tfcam_jax.explanation", "CHUNK", 1),)  # images; a report of the few has several parts then


@dataclasses.dataclass(frozen=True)
class Command:
    """A script that writes something, and its arguments without where to.

    Attributes:
      flag: the flag that says where to.
      variant: of the same script, to tell results apart.
    """

    script: str
    arguments: tuple[str, ...]
    flag: str = "out"
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.script}{self.variant}"

    def to(self, out: Path) -> list[str]:
        return [*self.arguments, f"--{self.flag}={out}"]


class Commands:
    """The scripts on a small run and its data, and what each of them writes when nothing disturbs it."""

    def __init__(self, context: Any, folder: Path, manifest: Path) -> None:
        self._context, self.folder, self._data = context, folder, manifest.parent
        folder.mkdir()
        self._training = small_arguments(manifest)
        run = f"--workdir={folder / 'run'}"
        writing = [
            *(Command("explain", (run, f"--split={split}"), variant=f" {split}") for split in ("val", "test")),
            *(
                Command("evaluate", (run, f"--split={split}", "--faithfulness_images=2"), variant=f" {split}")
                for split in ("val", "test")
            ),
            Command("export", (run, "--platform=cpu")),
            Command("publish", (run, "--license=mit", "--repo=owner/name")),
            Command("prepare", (*self._training, "--check")),
            Command("prepare", self._training, "write_manifest", " manifest"),
        ]
        self.all = {command.name: command for command in writing}
        self._do(Command("train", self._training, "workdir"), folder / "run")
        self.seconds, self.sound = {}, {}
        for name, command in self.all.items():
            began, out = time.monotonic(), self.out(f"sound {name}", name)
            self._do(command, out)
            self.seconds[name], self.sound[name] = time.monotonic() - began, content(out)

    def out(self, folder: str, name: str) -> Path:
        """Where a command writes in a folder of its own; a manifest lies beside the data that it names."""
        return self._data / f"{folder}.csv" if self.all[name].flag == "write_manifest" else self.folder / folder / "out"

    def fresh(self, name: str) -> Path:
        """The same in a folder that is empty."""
        out = self.out("trial", name)
        if out.parent == self._data:
            out.unlink(missing_ok=True)
        else:
            shutil.rmtree(out.parent, ignore_errors=True)
            out.parent.mkdir()
        return out

    def start(self, command: Command, out: Path, limits: Limits | None = None) -> Script:
        """Starts a command; reports are made in several parts."""
        limits = dataclasses.replace(limits or Limits(), patches=_CHUNKS)
        return Script(self._context, command.script, command.to(out), limits)

    def _do(self, command: Command, out: Path) -> None:
        out.parent.mkdir(exist_ok=True)
        ended = self.start(command, out).wait()
        if ended.status != 0:
            raise RuntimeError(f"undisturbed, {command.name} ended with {ended.status}: {ended.text}")

    def study(self, workdir: Path, log: str = "log") -> Fresh:
        """Starts a study of four runs in two processes, as a program of its own."""
        arguments = [*self._training, f"--workdir={workdir}", "--config.compare.processes=2"]
        arguments += ["--config.compare.strategies=('cyborg','difference')", "--config.compare.seeds=(0,1)"]
        environment = {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"), "JAX_PLATFORMS": "cpu"}
        return Fresh("compare", arguments, self.folder / log, environment)


def content(out: Path) -> dict[str, bytes] | None:
    """Each file below a folder, or the file itself; None where there is nothing. Hidden files are nobody's result."""
    if not out.exists():
        return None
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files if not path.name.startswith(".")} or None


def outcome_of(ended: Ended, names: Path) -> str:
    """Of a script that wrote nothing: refused if it said so, and named the place."""
    if ended.status is None:
        return HUNG
    told = not ended.traceback and "error:" in ended.text and names.name in ended.text
    return REFUSED if ended.status == 1 and told else UNCLEAR


def race(commands: Commands, count: int, rng: random.Random, until: float) -> Tally:
    """Starts two commands that write to one place, one a little later; the place has to hold what one of them makes."""
    tally = Tally()
    scripts = sorted({command.script for command in commands.all.values()})
    for _ in trials(count, "races", until):
        script = rng.choice(scripts)
        same = [command for command in commands.all.values() if command.script == script]
        same = same if len({command.flag for command in same}) == 1 else [rng.choice(same)]
        first, second = rng.choice(same), rng.choice(same)
        out, delay = commands.fresh(first.name), rng.uniform(0, commands.seconds[first.name])
        started = [commands.start(first, out)]
        time.sleep(delay)
        started.append(commands.start(second, out))
        ended = [each.wait() for each in started]
        wanted = [
            commands.sound[each.name] for each, end in zip((first, second), ended, strict=True) if end.status == 0
        ]
        what = f"{first.name} and {second.name}, {delay:.2f} s later"
        tally.add("races", *_of_race(ended, out, wanted, what), max(each.peak for each in ended))
    return tally


def _of_race(ended: list[Ended], out: Path, wanted: list[Any], what: str) -> tuple[str, str, str]:
    told = " / ".join(f"{each.status}: {_last(each)}" for each in ended)
    others = [outcome_of(each, out) for each in ended if each.status != 0]
    for failure in (HUNG, UNCLEAR):
        if failure in others:
            return failure, what, told
    if not wanted or content(out) not in wanted:
        return WRONG, what, f"{told}; {_describe(content(out), wanted)}"
    return (REFUSED if others else RIGHT), what, told


def stop(commands: Commands, count: int, rng: random.Random, until: float) -> Tally:
    """Stops commands at random moments by SIGINT, SIGTERM or SIGKILL, and calls them again."""
    tally = Tally()
    for _ in trials(count, "stopped commands", until):
        name = rng.choice(sorted(commands.all))
        command, out = commands.all[name], commands.fresh(name)
        number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
        delay = rng.uniform(0.2, commands.seconds[name])
        script = commands.start(command, out)
        time.sleep(delay)
        script.signal(number)
        ended = script.wait(30)
        what = f"{name}, {number.name} after {delay:.2f} s"
        outcome, told = _of_stop(commands, command, out, number, ended)
        tally.add("stopped commands", outcome, what, told, ended.peak)
    return tally


def _of_stop(commands: Commands, command: Command, out: Path, number: int, ended: Ended) -> tuple[str, str]:
    """What a stopped command left, and what comes of the same command after it."""
    sound, left = commands.sound[command.name], content(out)
    if ended.status is None:
        return HUNG, _last(ended)
    if ended.status == 0 or left is not None:
        return (RIGHT if left == sound else WRONG), f"{ended.status}: {_last(ended)}; {_describe(left, [sound])}"
    if ended.traceback or ended.status != _STOPPED.get(signal.Signals(number), -number):
        return UNCLEAR, f"{ended.status}: {_last(ended)}"
    again = commands.start(command, out).wait()
    right = again.status == 0 and content(out) == sound
    return (RIGHT if right else WRONG), f"again: {again.status}: {_last(again)}; {_describe(content(out), [sound])}"


def stop_studies(commands: Commands, count: int, rng: random.Random, until: float) -> Tally:
    """Stops studies of several processes, by Ctrl-C once or twice, SIGTERM or SIGKILL of the first process alone."""
    tally = Tally()
    whole = commands.folder / "whole study"
    for number in trials(count, "stopped studies", until):
        if not whole.exists():
            commands.study(whole).wait(_STUDY_SECONDS)
        workdir = commands.folder / "study"
        shutil.rmtree(workdir, ignore_errors=True)
        how = ("Ctrl-C", "Ctrl-C twice", "SIGTERM", "SIGKILL")[number % 4]
        delay = rng.uniform(1, 15)
        study = commands.study(workdir)
        time.sleep(delay)
        signals = {"SIGTERM": [signal.SIGTERM], "SIGKILL": [signal.SIGKILL]}.get(
            how, [signal.SIGINT] * (1 + number % 4)
        )
        for sent in signals:
            if how.startswith("Ctrl-C"):
                study.signal(sent)
            elif study.process.poll() is None:
                os.kill(study.process.pid, sent)
            time.sleep(0.3)
        outcome, told = _of_study(commands, study, workdir, whole, signals[0])
        tally.add("stopped studies", outcome, f"{how} after {delay:.2f} s", told)
    return tally


def _of_study(commands: Commands, study: Fresh, workdir: Path, whole: Path, number: int) -> tuple[str, str]:
    ended = study.wait(70)
    if ended.status is None or study.left(_ORPHAN_SECONDS):
        return HUNG, f"{ended.status}: {_last(ended)}"
    # A second Ctrl-C ends at once, by the signal itself.
    if ended.traceback or ended.status not in (0, 1, _STOPPED.get(signal.Signals(number), -number), -signal.SIGINT):
        return UNCLEAR, f"{ended.status}: {_last(ended)}"
    again = commands.study(workdir).wait(_STUDY_SECONDS)
    figures = lambda folder: {path.parent.name: path.read_bytes() for path in folder.glob("*/results.json")}
    right = again.status == 0 and figures(workdir) == figures(whole)
    return (RIGHT if right else WRONG), f"again: {again.status}: {_last(again)}"


def fill_disks(commands: Commands, count: int, rng: random.Random, until: float) -> Tally:
    """Runs commands where files can't grow beyond a size, as on a full disk, or where nothing can be written."""
    tally = Tally()
    for number in trials(count, "disks", until):
        name = rng.choice(sorted(commands.all))
        out, full = commands.fresh(name), number % 2 == 0
        limits = Limits(int(10 ** rng.uniform(0, 5))) if full else Limits(no_rights=True)
        kind = "full disks" if full else "read-only folders"
        what = f"{name}, {f'files of {limits.file_bytes} bytes at most' if full else 'nothing can be written'}"
        mode = out.parent.stat().st_mode
        out.parent.chmod(mode if full else 0o555)
        try:
            ended = commands.start(commands.all[name], out, limits).wait()
        finally:
            out.parent.chmod(mode)
        left, sound = content(out), commands.sound[name]
        if ended.status == 0 or left is not None:
            outcome = RIGHT if left == sound and full else WRONG
        else:
            outcome = outcome_of(ended, out)
        tally.add(kind, outcome, what, f"{ended.status}: {_last(ended)}", ended.peak)
    return tally


def _last(ended: Ended) -> str:
    return " | ".join(ended.text.strip().splitlines()[-3:])[-400:]


def _describe(found: dict[str, bytes] | None, wanted: list[Any]) -> str:
    """In what files a result differs from the first of those that would do."""
    if found is None or not wanted:
        return "there is nothing" if found is None else "nothing should be there"
    return "differing: " + ", ".join(sorted(k for k in found.keys() | wanted[0] if found.get(k) != wanted[0].get(k)))
