"""The report on a comparison study: tables, plots and a page."""

from __future__ import annotations

import base64
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import visible
from ..metrics.tables import markdown_text
from ..report.page import template
from ..run.files import write_bytes, write_json, write_text
from .outcomes import Outcome
from .plots import Plot, draw_study
from .statistics import StudyError, reading_order, study_statistics
from .tables import (
    arms_csv,
    comparisons_csv,
    overview,
    overview_entries,
    overview_note,
    seed_table,
    seeds_csv,
    selection_table,
    set_tables,
)
from .verdicts import conclusions, heading, mark, one_seed, verdict

SCREEN_WIDTH = 120


def write_study(
    out: str | Path,
    outcomes: Sequence[Outcome],
    selection: dict[str, dict[str, Any]],
    provenance: Mapping[str, Any],
    reference: str = "cyborg",
    placebos: Mapping[str, Sequence[str]] | None = None,
    strategies: Mapping[str, str] | None = None,
    resamples: int = 1000,
    maps: Path | None = None,
) -> dict[str, Any]:
    """Compares the arms of a study and writes what was found.

    Everything is worked out before the first file is written; each file appears whole or not at all.

    Args:
      out: folder, made if it is not there. `study.json`, `table.txt`, `table.md`, `table.csv`, `comparisons.csv`,
        `seeds.csv`, `index.html` (needs no other file) and the plots as PNG are written into it, over older ones;
        `study.json` last. Plots that an older report had and this one has not are removed.
      outcomes: of `outcomes.read_outcomes`.
      selection: of `outcomes.read_selection`; may be empty.
      provenance: JSON-able; what is needed to redo the study (config, versions, commit, command). Shown as it is.
      reference: here and below as in `study_statistics`.
      placebos: of each arm its control arms.
      strategies: of each arm its strategy.
      resamples: of the bootstrap.
      maps: a PNG of maps side by side, which the page then shows.

    Returns:
      What `study.json` holds: `reference`, `placebos`, `statistics` (see `study_statistics`), `conclusions`,
      `selection`, `provenance`.

    Raises:
      StudyError: outcomes that contradict each other, or none.
    """
    out, placebos = Path(out), {arm: list(controls) for arm, controls in (placebos or {}).items()}
    if out.is_file():
        raise StudyError(f"{out} is not a folder; choose another place for the report")
    statistics = study_statistics(outcomes, reference, placebos, strategies, resamples)
    study = {"reference": reference, "placebos": placebos, "statistics": statistics}
    study |= {"selection": selection, "provenance": dict(provenance)}
    ordered = study | {"statistics": reading_order(statistics)}
    study["conclusions"] = conclusions(ordered)
    plots = draw_study(ordered["statistics"], selection, placebos, reference)
    alone = all(map(one_seed, statistics))
    shown = {
        "one_seed": alone,
        "notes": template("notes.txt", "tfcam_jax.study").render(one_seed=alone).splitlines(),
        "conclusions": study["conclusions"],
        "overview": overview(ordered),
        "overview_note": overview_note(ordered),
        "sections": [_section(entry) for entry in ordered["statistics"]],
        "selection": selection_table(ordered),
    }
    tables = template("tables.txt", "tfcam_jax.study")
    texts = {
        "table.txt": tables.render(shown, markdown=False, words=visible),
        "table.md": tables.render(shown, markdown=True, words=markdown_text),
        "table.csv": arms_csv(study),
        "comparisons.csv": comparisons_csv(study),
        "seeds.csv": seeds_csv(study),
        "index.html": _page(ordered, shown, plots, len({(o.arm, o.protocol, o.fold, o.seed) for o in outcomes}), maps),
    }
    json.dumps(study, allow_nan=False)  # what cannot be stored must be known before anything is written
    out.mkdir(parents=True, exist_ok=True)
    pictures = {f"plot_{plot.name}.png": plot.png for plot in plots}
    for stale in set(out.glob("plot_*.png")) - {out / name for name in pictures}:
        stale.unlink()
    for name, picture in pictures.items():
        write_bytes(out / name, picture)
    for name, text in texts.items():
        write_text(out / name, text)
    write_json(out / "study.json", study)
    return study


def screen(study: dict[str, Any]) -> str:
    """What a terminal shows at the end: of each protocol the table at a glance and what was found on its set.

    `study` is what `write_study` returns.
    """
    ordered = study | {"statistics": reading_order(study["statistics"])}
    wrapper = textwrap.TextWrapper(SCREEN_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    whole = re.compile(r"p [=<] |95 %: ")  # stays on a line with the figure behind it
    wrap = lambda text: wrapper.fill(whole.sub(lambda m: m[0].replace(" ", "\xa0"), text)).replace("\xa0", " ")
    blocks = []
    for table, entry in zip(overview(ordered), overview_entries(ordered), strict=True):
        found = "\n".join(wrap(f"- {sentence}") for sentence in study["conclusions"][heading(entry)])
        blocks += [table.text(), found]
    blocks[1:1] = [wrap(note)] if (note := overview_note(ordered)) else []
    return "\n\n".join(blocks or map(wrap, study["conclusions"]["No test"]))


def _section(entry: dict[str, Any]) -> dict[str, Any]:
    """What every form of the report shows of one protocol and set."""
    verdicts = [(mark(comparison), verdict(entry, comparison)) for comparison in entry["comparisons"]]
    return {"title": heading(entry), "tables": set_tables(entry), "seeds": seed_table(entry), "verdicts": verdicts}


def _page(study: dict[str, Any], shown: dict[str, Any], plots: Sequence[Plot], runs: int, maps: Path | None) -> str:
    """The page as HTML: plots, maps, tables and style are inside. `runs` trained models stand behind it."""
    uri = lambda content, kind="svg+xml": f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    plain = lambda value: " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    provenance = study["provenance"].items()
    return template("study.html", "tfcam_jax.study").render(
        shown,
        reference=study["reference"],
        tiles=_tiles(study, runs),
        plots=[plot._asdict() | {"light": uri(plot.light), "dark": uri(plot.dark)} for plot in plots],
        maps=uri(maps.read_bytes(), "png") if maps else "",
        facts={key: plain(value) for key, value in provenance if not isinstance(value, dict)},
        records={key: json.dumps(value, indent=2) for key, value in provenance if isinstance(value, dict)},
    )


def _tiles(study: dict[str, Any], runs: int) -> dict[str, str]:
    """What was run, in a few numbers."""
    entries = study["statistics"]
    seeds = sorted({seed for entry in entries for arm in entry["arms"] for seed in arm["seeds"]})
    chosen = [own for arms in study["selection"].values() for own in arms.values()]
    trained = sum(point["runs"] for own in chosen for point in own["alphas"])
    largest = {name: max(e["images"] for e in entries if e["set"] == name) for name in (e["set"] for e in entries)}
    return {
        "models": f"{runs} compared, {trained} trained" if trained > runs else str(runs),
        "arms": str(len({arm["arm"] for entry in entries for arm in entry["arms"]})),
        "seeds": f"{len(seeds)}: {', '.join(map(str, seeds))}",
        "protocols": ", ".join(dict.fromkeys(entry["protocol"] for entry in entries)),
        "images": ", ".join(f"{name} {number}" for name, number in largest.items()),
        "reference": study["reference"],
    }
