"""Preparing data: validate, report, and pack what a recipe names."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from .. import written_manifest
from ..human_maps import describe_maps
from ..listing import listed_records
from ..outputs import claimed, only_of, write_folder
from ..protocol import assign_splits
from ..recipe import DataRecipe
from ..source import SPLITS, DataError, Dataset
from .contact_sheet import draw_contact_sheet
from .inspection import Inspection, inspect
from .report import Report, align, describe_listing, make_report

# What `--out` may replace: an earlier report, and nothing else.
_OWN = only_of("a report on data", "report.json", "report.txt", "contact_sheet.png")


def prepare(
    recipe: DataRecipe,
    check: bool,
    out: str | Path | None = None,
    write_manifest: str | Path | None = None,
    remarks: Sequence[str] = (),
) -> bool:
    """Builds the data set that a recipe names, so that training finds it ready.

    Args:
      recipe: as for training.
      check: first open every file and print a report, with all errors at once; ConfigError for a set without files.
      out: folder for the report (`report.txt`, `report.json`) and a contact sheet (`contact_sheet.png`): new, empty or
        of an earlier report, which is replaced; None: none.
      write_manifest: CSV to write, which source `manifest` opens as the same data with the same splits; None: none. Its
        errors are those of `written_manifest`.
      remarks: lines to tell besides, as of the model that is to see the images.

    Returns:
      True if the data can be trained on; False after a report of what can't. Without `check` DataError, as in training.
    """
    with contextlib.ExitStack() as held:
        manifest = None
        if write_manifest is not None:
            manifest = written_manifest.check_target(write_manifest, recipe.listing())
            held.enter_context(claimed(manifest))
        known = None
        if check:
            inspection, sound = _check(recipe, out, remarks)
            if not sound:
                return False
            known = inspection.checked
        dataset = recipe.arrange(recipe.open(known))
        name = recipe.protocol.get("name", "published")
        notes = () if check else (*dataset.notes, *remarks)
        print("\n".join(["", *notes, f"Ready: {dataset.name}, protocol {name}", *describe(dataset)]))
        if manifest is not None:
            print("\n" + written_manifest.write_manifest(manifest, recipe.listing(), dataset))
    return True


def _check(recipe: DataRecipe, out: str | Path | None, remarks: Sequence[str]) -> tuple[Inspection, bool]:
    """Opens every file, tells and writes the report; and whether what it found can be trained on."""
    with contextlib.ExitStack() as held:
        folder = held.enter_context(write_folder(out, _OWN)) if out is not None else None
        listing = recipe.listing()
        print(describe_listing(listing), end="\n\n", flush=True)
        inspection = inspect(listing, closely=True)
        report = make_report(inspection, _protocol_problems(recipe, inspection), remarks)
        print(report.text)
        if folder is not None:
            _write(report, inspection, folder)
    if out is not None:
        print(f"\nReport and contact sheet: {out}")
    refused = inspection.unreadable if recipe.options.get("skip_unreadable") else ()
    return inspection, not set(report.problems) - set(refused)


def describe(dataset: Dataset) -> list[str]:
    """Lines of a table: images, maps, domains and groups of each split, and what was left out."""
    rows: list[tuple[str, ...]] = [("split", "images", "maps", "groups", "domains")]
    for split in SPLITS:
        if split in dataset.splits:
            records = dataset.splits[split].records
            domains = ", ".join(sorted(set(records.domains))) or "-"
            counts = len(records), records.has_map.sum(), len(set(records.groups) - {""})
            rows.append((split, *map(str, counts), domains))
    return [
        *align(rows),
        *describe_maps(dataset),
        *([f"left out as unreadable: {len(dataset.skipped)}"] if dataset.skipped else []),
    ]


def _protocol_problems(recipe: DataRecipe, inspection: Inspection) -> list[str]:
    """What the protocol refuses, as far as the rows are sound."""
    listing = inspection.listing
    pairs = zip(listing.rows, inspection.outcomes, strict=True)
    named = lambda row: row.label in listing.class_names and row.split in SPLITS
    sound = [(row, outcome) for row, outcome in pairs if outcome.digest and named(row)]
    if not sound:
        return []
    rows, outcomes = zip(*sound, strict=True)
    records = listed_records(rows, outcomes, listing.class_names)
    try:
        assign_splits(records, [row.split for row in rows], listing.class_names, **recipe.protocol)
    except DataError as error:
        # What is wrong with the splits as published has been told with its rows, if anything was.
        told = recipe.protocol.get("name", "published") == "published" and inspection.problems
        return [] if told else error.problems
    return []


def _write(report: Report, inspection: Inspection, folder: Path) -> None:
    (folder / "report.txt").write_text(report.text + "\n", encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report.figures, indent=2) + "\n", encoding="utf-8")
    draw_contact_sheet(inspection, folder / "contact_sheet.png")
