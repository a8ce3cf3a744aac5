"""Kills short runs at random moments and damages inputs, and counts what comes of it; takes about 20 minutes.

python tests/stress/faults.py --out=runs/faults

All of it works on images drawn here, with a tiny network on the CPU, in a temporary folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stress.inputs import FAILURES, KINDS, OUTCOMES, damage_inputs
from stress.kills import Kills, describe, kill_runs
from stress.runs import draw_data, small_config, start_server

from tfcam_jax.metrics.tables import align
from tfcam_jax.run.files import write_json, write_text

_EPOCHS = 5
# Of the time, for the kills where both are asked for.
_SHARE = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for faults.txt and faults.json")
    parser.add_argument("--kills", type=_count, default=200, help="kills (200)")
    parser.add_argument("--inputs", type=_count, default=500, help="damaged inputs (500)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damages (0)")
    parser.add_argument("--minutes", type=float, default=30.0, help="what is not done after so long is left out (30)")
    chosen = parser.parse_args()
    if not study_faults(chosen.out, chosen.kills, chosen.inputs, chosen.seed, chosen.minutes):
        sys.exit("error: not all is as it should be; see the lines marked with !")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def study_faults(out: Path, kills: int, inputs: int, seed: int, minutes: float) -> bool:
    """Kills short runs and restarts them; damages files and runs what reads them. Prints and writes the tables.

    Args:
      out: folder for `faults.json` and `faults.txt`.
      kills: how many.
      inputs: how many damaged files.
      seed: of moments and damages. (The moments also hang on the machine's speed.)
      minutes: bound; what was not done by then is left out, and the table says how much was.

    Returns:
      Whether all of it is as it should be.
    """
    started, rng = time.monotonic(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="tfcam_faults") as scratch:
        folder = Path(scratch)
        # A cache of its own: the kills hit its writing too.
        context = start_server(folder / "compiled")
        config = small_config(draw_data(folder / "data"), _EPOCHS)
        killed = kill_runs(config, folder, context, kills, rng, started + 60 * minutes * (_SHARE if inputs else 1))
        counts, notes = damage_inputs(config, folder, context, inputs, rng, started + 60 * minutes)
    study = {
        "asked": {"kills": kills, "inputs": inputs, "seed": seed, "minutes": minutes},
        "seconds": round(time.monotonic() - started, 1),
        "kills": dataclasses.asdict(killed),
        "inputs": {"outcomes": counts, "notes": notes},
    }
    text = format_faults(study, killed)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "faults.json", study)
    write_text(out / "faults.txt", text + "\n")
    print(text)
    return killed.sound and not notes


def format_faults(study: dict[str, Any], kills: Kills) -> str:
    """Two aligned tables and the failures, one line each."""
    counts = study["inputs"]["outcomes"]
    done = sum(sum(by_outcome.values()) for by_outcome in counts.values())
    rows = [
        (name, *(str(counts[kind][name]) for kind in KINDS), str(sum(counts[kind][name] for kind in KINDS)))
        for name in OUTCOMES
    ]
    return "\n".join(
        [
            f"{kills.kills} of {study['asked']['kills']} kills, {done} of {study['asked']['inputs']} damaged inputs, "
            f"{study['seconds']:.0f} s",
            "",
            *align([("kills", ""), *describe(kills)]),
            *(f"  ! {note}" for note in kills.notes),
            "",
            *align([("outcome", *KINDS, "all"), *rows]),
            *(f"{name}: {meaning}{' (must not be)' if name in FAILURES else ''}" for name, meaning in OUTCOMES.items()),
            *(f"  ! {note}" for note in study["inputs"]["notes"]),
        ]
    )


if __name__ == "__main__":
    main()
