"""How a run comes through kills and damaged files: counted, bounded in time, printed and written."""

from __future__ import annotations

import dataclasses
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tests.stress.inputs import FAILURES, KINDS, OUTCOMES, damage_inputs
from tests.stress.kills import Kills, describe, kill_runs
from tests.stress.runs import draw_data, small_config, start_server
from tfcam_jax.metrics.tables import align
from tfcam_jax.run.files import write_json, write_text

_EPOCHS = 5
# Of the time, for the kills where both are asked for.
_SHARE = 0.8


def study_faults(
    config: ConfigDict, out: str | Path, kills: int, inputs: int, seed: int, minutes: float
) -> tuple[dict[str, Any], bool]:
    """Kills short runs and restarts them; damages files and runs what reads them. Writes `faults.json`, `faults.txt`.

    Both work on images drawn here, with a tiny network on the CPU, in a temporary folder.

    Args:
      config: the default; sizes and names are set here.
      out: folder for the two files.
      kills: how many.
      inputs: how many damaged files.
      seed: of moments and damages. (The moments also hang on the machine's speed.)
      minutes: bound; what was not done by then is left out, and the table says how much was.

    Returns:
      What `faults.json` holds, and whether all of it is as it should be.
    """
    started, rng = time.monotonic(), random.Random(seed)
    context = start_server()
    with tempfile.TemporaryDirectory(prefix="tfcam_faults") as scratch:
        folder = Path(scratch)
        # A cache of its own: the kills hit its writing too.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        config = small_config(config, draw_data(folder / "data"), _EPOCHS)
        killed = kill_runs(config, folder, context, kills, rng, started + 60 * minutes * (_SHARE if inputs else 1))
        counts, notes = damage_inputs(config, folder, context, inputs, rng, started + 60 * minutes)
    study = {
        "asked": {"kills": kills, "inputs": inputs, "seed": seed, "minutes": minutes},
        "seconds": round(time.monotonic() - started, 1),
        "kills": dataclasses.asdict(killed),
        "inputs": {"outcomes": counts, "notes": notes},
    }
    text = format_faults(study, killed)
    Path(out).mkdir(parents=True, exist_ok=True)
    write_json(Path(out) / "faults.json", study)
    write_text(Path(out) / "faults.txt", text + "\n")
    print(text)
    sound = killed.exact == killed.kills and not (killed.lost or killed.damaged or killed.hangs or killed.notes)
    return study, sound and not notes


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
