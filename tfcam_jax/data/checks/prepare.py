"""Preparing data: validate, report, and pack what a config names."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from ...experiment import ConfigError, check_values, open_dataset, source_options
from ...run.files import write_json
from .. import LISTINGS
from ..listing import Inspection, inspect, rows_records
from ..protocol import assign_splits
from ..source import SPLITS, DataError, Dataset, Records
from .contact_sheet import draw_contact_sheet
from .report import Report, align, make_report


def prepare(config: ConfigDict, check: bool, out: str | Path | None = None) -> bool:
    """Builds the data set that a config names, so that training finds it ready.

    Args:
      config: as for training; only `data` is used, and `seed`.
      check: first open every file and print a report, with all errors at once.
      out: folder for the report (`report.txt`, `report.json`) and a contact sheet (`contact_sheet.png`); None: none.

    Returns:
      True if the data can be trained on; with `check`, False after a report of what can't.

    Raises:
      ConfigError: a value that names nothing, or `check` for a set without files.
      DataError: without `check`, as training would.
    """
    check_values(config)
    if check:
        inspection = _inspect(config)
        report = make_report(inspection, _protocol_problems(config, inspection))
        print(report.text)
        if out is not None:
            _write(report, inspection, Path(out))
        refused = inspection.unreadable if config.data.skip_unreadable else ()
        if set(report.problems) - set(refused):
            return False
    dataset = open_dataset(config)
    print("\n".join(["", f"Ready: {dataset.name}, protocol {config.data.protocol.name}", *describe(dataset)]))
    return True


def describe(dataset: Dataset) -> list[str]:
    """Lines of a table: images, maps, domains and groups of each split, and what was left out."""
    rows = [("split", "images", "maps", "groups", "domains")]
    for split in SPLITS:
        if split in dataset.splits:
            records = dataset.splits[split].records
            domains = ", ".join(sorted(set(records.domains))) or "-"
            groups = len(set(records.groups) - {""})
            rows.append((split, f"{len(records)}", f"{records.has_map.sum()}", f"{groups}", domains))
    return [*align(rows), *([f"left out as unreadable: {len(dataset.skipped)}"] if dataset.skipped else [])]


def _inspect(config: ConfigDict) -> Inspection:
    if config.data.source not in LISTINGS:
        raise ConfigError(
            f"config.data.source is {config.data.source!r}, which is drawn and has no files to check: leave out --check"
        )
    return inspect(LISTINGS[config.data.source](**source_options(config)))


def _protocol_problems(config: ConfigDict, inspection: Inspection) -> list[str]:
    """What the protocol refuses, as far as the rows are sound."""
    listing = inspection.listing
    sound = [
        (row, check)
        for row, check in zip(listing.rows, inspection.checks, strict=True)
        if check.digest and row.label in listing.class_names and row.split in SPLITS
    ]
    if not sound:
        return []
    rows, checks = zip(*sound, strict=True)
    records: Records = rows_records(rows, checks, listing.class_names)
    try:
        assign_splits(records, [row.split for row in rows], **config.data.protocol)
    except DataError as error:
        # What is wrong with the splits as published has been told with its rows.
        return error.problems if config.data.protocol.name != "published" else []
    return []


def _write(report: Report, inspection: Inspection, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.txt").write_text(report.text + "\n", encoding="utf-8")
    write_json(out / "report.json", {**report.figures, "problems": list(report.problems), "notes": list(report.notes)})
    draw_contact_sheet(inspection, out / "contact_sheet.png")
    print(f"\nReport and contact sheet: {out}")
