"""What a run's data are: which source with which options, split and with its maps changed how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, check_known
from . import LISTINGS, SOURCES
from .checks.outcomes import Outcomes
from .decode import check_channels
from .human_maps import PLACEBOS, MapChoice, Smooth, process_maps, smooth_maps, without_predicted
from .listing import READING, Listing
from .manifest import OpenedSplit, open_manifest_split
from .paths import local_path
from .protocol import ProtocolOptions, apply_protocol
from .source import Dataset

# Options of sources that are places of files.
_PLACES = {"folders": ("images", "maps"), "": ("manifest", "data_dir", "manual_dir")}


@dataclass(frozen=True)
class DataRecipe:
    """Everything that decides which images and maps a run sees, but for augmentation.

    Attributes:
      source: a key of `SOURCES`.
      options: keyword arguments of that source.
      channels: 3 for RGB, 1 for grey.
      protocol: fields of `ProtocolOptions`.
      predicted, share, share_seed: which maps are taken, see `MapChoice`.
      blur, threshold: of maps, see `Smooth`.
      placebo, seed: one of `PLACEBOS`, in place of training's maps, and of its dealing.

    Raises:
      ConfigError: a value that names nothing or lies outside its range.
    """

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 3
    protocol: Mapping[str, Any] = field(default_factory=dict)
    predicted: str = "use"
    share: float = 1.0
    share_seed: int = 0
    blur: float = 0.0
    threshold: float = 0.0
    placebo: str = "none"
    seed: int = 0

    def __post_init__(self):
        check_known("data.source", self.source, SOURCES)
        check_known("data.maps.placebo", self.placebo, PLACEBOS)
        check_channels(self.channels)
        ProtocolOptions(**self.protocol)
        Smooth(self.blur, self.threshold)
        self._choice()
        object.__setattr__(self, "options", self._with_places())

    def _with_places(self) -> dict[str, Any]:
        """The options, `~` in the places of files replaced; ConfigError for one that no file of this machine has."""
        section = "config.data." if self.source == "manifest" else f"config.data.{self.source}."
        named = {key for key in _PLACES.get(self.source, _PLACES[""]) if self.options.get(key)}
        return {**self.options} | {key: str(local_path(self.options[key], section + key)) for key in named}

    def _choice(self) -> MapChoice:
        return MapChoice(self.predicted, self.share, self.share_seed)

    @property
    def bits(self) -> int | None:
        """In use in images of 16, see `decode.decode_picture`."""
        return self.options.get("bits")

    @property
    def place(self) -> str:
        """Where the data are, for messages: the manifest, the folder of images, or the source's name."""
        return str(self.options.get("manifest") or self.options.get("images") or self.source)

    def listing(self) -> Listing:
        """The source's files, no image opened.

        Raises ConfigError where the source has none, DataError where they aren't there or can't be read.
        """
        if self.source not in LISTINGS:
            what = f"data.source is {self.source!r}, which is drawn and has no files to check"
            raise ConfigError(f"{what}: leave out --check and --write_manifest")
        return LISTINGS[self.source](**self.options)

    def open(self, known: Outcomes | None = None) -> Dataset:
        """The data set as its owner splits it, checked, with the maps as they are.

        Of an earlier opening `known` are the outcomes (`Dataset.checked`): unchanged files are not decoded again.
        Raises DataError with every problem found.
        """
        return SOURCES[self.source](channels=self.channels, known=known, **self.options)

    def arrange(self, dataset: Dataset) -> Dataset:
        """Splits what `open` gave by the protocol, and gives it the maps that are asked for.

        Where nothing is trained, published splits are taken as they are: they need not be complete.

        Raises DataError for what the protocol refuses, and for a placebo that can't be had.
        """
        maps = {"blur": self.blur, "threshold": self.threshold, "placebo": self.placebo, "seed": self.seed}
        if self.options.get("to_train", True) or self.protocol.get("name", "published") != "published":
            dataset = apply_protocol(dataset, **self.protocol)
        return process_maps(self._choice().apply(dataset), **maps)

    def open_split(
        self, manifest: str | Path, split: str | None, class_names: tuple[str, ...], known: Outcomes | None = None
    ) -> OpenedSplit:
        """One split of another manifest, its maps read and smoothed as this recipe's; placebos are for training.

        `class_names` are the model's; arguments and errors otherwise as of `open_manifest_split`.
        """
        reading = {name: self.options[name] for name in READING if name in self.options}
        opened = open_manifest_split(manifest, split, class_names, self.channels, known=known, **reading)
        people = without_predicted(opened.source)
        return opened._replace(source=smooth_maps(people, self.blur, self.threshold))
