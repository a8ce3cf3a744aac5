"""Which regions of an image carried a margin, and which explanations look right without being so, in NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

# A region is where |D| is at least this share of its largest value in the image.
REGION_THRESHOLD = 0.5
# A true-class map looks right from this correlation with the human map on; the difference does not below half of it.
LOOKS_RIGHT = 0.5


class Region(NamedTuple):
    """Connected places of one sign that carry much of a margin.

    Attributes:
      contribution: what the region adds to the margin; negative where it speaks for the false class.
      places: how many.
      box: first row, first column, one past the last row, one past the last column, in places.
    """

    contribution: float
    places: int
    box: tuple[int, int, int, int]


def margin_regions(
    difference: Float[np.ndarray, "h w"], threshold: float = REGION_THRESHOLD
) -> tuple[list[Region], float]:
    """Splits the mean of D into the regions that carry it and the rest.

    Args:
      difference: D of one image.
      threshold: share of the largest |D| from which on a place belongs to a region, in (0, 1].

    Returns:
      `(regions, rest)`. Regions are the 4-connected components of equal sign, the largest contribution (in magnitude)
      first. `sum(contributions) + rest == mean(D)`, and for the margin of `cams.decompose_margin` the bias difference
      comes on top. A D that is zero everywhere has no region.
    """
    values = np.asarray(difference, np.float64)
    strong = np.abs(values) >= threshold * np.abs(values).max()
    strong &= values != 0
    regions = []
    for sign in (values > 0, values < 0):
        components = np.zeros(values.shape, int)
        ndimage.label(strong & sign, output=components)
        for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
            member = components == number
            box = (rows.start, columns.start, rows.stop, columns.stop)
            regions.append(Region(float(values[member].sum() / values.size), int(member.sum()), box))
    regions.sort(key=lambda region: -abs(region.contribution))
    return regions, float(values[~strong].sum() / values.size)


def is_cosmetic(
    true_agreement: Float[np.ndarray, " n"], difference_agreement: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """True where the true-class map looks right while the difference, which alone decides, does not.

    Args:
      true_agreement: correlation of T with the human map; at least 0.5 looks right.
      difference_agreement: of D; less than 0.25 does not.
    """
    return (true_agreement >= LOOKS_RIGHT) & (difference_agreement < LOOKS_RIGHT / 2)
