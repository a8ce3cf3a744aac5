"""Kills, races, full disks, damaged, hostile and changed inputs: what comes of them, in one table; takes about an hour.

python tests/stress/faults.py --out=runs/faults

All of it works on images drawn here, with a tiny network on the CPU, in a temporary folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stress.commands import Commands, fill_disks, race, stop, stop_studies
from stress.inputs import try_inputs
from stress.kills import Kills, describe, kill_runs
from stress.runs import draw_data, small_config, start_server
from stress.tally import HUNG, RIGHT, WRONG, Tally

from tfcam_jax.run.files import write_json, write_text

_EPOCHS = 5
# Of the kills, those of a command other than train, and of a study; of the inputs, those on a bad disk.
_OF_COMMANDS, _OF_STUDIES, _OF_DISKS = 0.18, 0.02, 0.08
KILLS = "kills of training"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for faults.txt and faults.json")
    parser.add_argument("--kills", type=_count, default=500, help="kills and other signals (500)")
    parser.add_argument("--inputs", type=_count, default=1000, help="damaged, hostile, odd and changed inputs (1000)")
    parser.add_argument("--races", type=_count, default=100, help="two commands that write to one place (100)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damages (0)")
    parser.add_argument("--minutes", type=float, default=120.0, help="what is not done after so long is left out (120)")
    chosen = parser.parse_args()
    # A shell's job in the background ignores Ctrl-C, and what it starts inherits that; they would rightly go on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not study_faults(chosen.out, Asked(chosen.kills, chosen.inputs, chosen.races), chosen.seed, chosen.minutes):
        sys.exit("error: not all is as it should be; see the lines marked with !")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


@dataclasses.dataclass(frozen=True)
class Asked:
    """How many trials of each sort."""

    kills: int
    inputs: int
    races: int


def study_faults(out: Path, asked: Asked, seed: int, minutes: float) -> bool:
    """Tries all of it. Prints and writes the table.

    Args:
      out: folder for `faults.json` and `faults.txt`.
      asked: how many trials.
      seed: of moments and damages. (The moments also hang on the machine's speed.)
      minutes: bound; what was not done by then is left out, and the first line says how much was.

    Returns:
      Whether all of it is as it should be.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tfcam_faults") as scratch:
        tally, kills = _try_all(Path(scratch), asked, seed, started + 60 * minutes)
    study = {
        "asked": dataclasses.asdict(asked) | {"seed": seed, "minutes": minutes},
        "seconds": round(time.monotonic() - started, 1),
        "kills": dataclasses.asdict(kills),
        **dataclasses.asdict(tally),
    }
    text = format_faults(study, tally, kills)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "faults.json", study)
    write_text(out / "faults.txt", text + "\n")
    print(text)
    return not tally.notes


def _try_all(folder: Path, asked: Asked, seed: int, until: float) -> tuple[Tally, Kills]:
    """Every sort, kills of training beside all others; a sort of which none is asked for costs nothing."""
    context = start_server(folder / "compiled")  # a cache of its own: the kills hit its writing too
    manifest = draw_data(folder / "data")
    config = small_config(manifest, _EPOCHS)
    commands, studies = round(asked.kills * _OF_COMMANDS), round(asked.kills * _OF_STUDIES)
    disks, kills = round(asked.inputs * _OF_DISKS), asked.kills - commands - studies

    def try_others() -> Tally:
        tally, rng = Tally(), random.Random(seed)
        if asked.inputs:
            tally.join(try_inputs(config, folder, context, asked.inputs - disks, rng, until))
        if commands or studies or disks or asked.races:
            shop = Commands(context, folder / "commands", manifest)
            for trials, count in ((race, asked.races), (stop, commands), (stop_studies, studies), (fill_disks, disks)):
                tally.join(trials(shop, count, rng, until))
        return tally

    with ThreadPoolExecutor(2) as pool:
        others = pool.submit(try_others)
        killed = kill_runs(config, folder, context, kills, random.Random(seed), until) if kills else Kills()
        tally = others.result()
    tally.join(tally_of(killed))
    return tally, killed


def tally_of(kills: Kills) -> Tally:
    """The kills of training as a row of the table: right is an exact resume."""
    tally = Tally()
    outcomes = {RIGHT: kills.exact, HUNG: kills.hangs}
    outcomes[WRONG] = kills.kills - sum(outcomes.values())
    for outcome, number in outcomes.items():
        for _ in range(number):
            tally.add(KILLS, outcome, "see the kills' own lines")
    tally.notes = [f"{KILLS}: {note}" for note in kills.notes]
    return tally


def format_faults(study: dict[str, Any], tally: Tally, kills: Kills) -> str:
    """What was done of what was asked for, the table, and where the kills of training hit."""
    asked = study["asked"]
    wanted = f"{asked['kills']} kills, {asked['inputs']} inputs and {asked['races']} races"
    done = sum(tally.tried(kind) for kind in tally.counts)
    return "\n".join(
        [f"{done} trials of {wanted} asked for, {study['seconds']:.0f} s", "", *tally.table(), "", *describe(kills)]
    )


if __name__ == "__main__":
    main()
