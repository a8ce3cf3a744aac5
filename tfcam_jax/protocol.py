"""Closed set and open set: which test images come from sources that training saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def split_by_protocol(
    train_domains: Sequence[str], test_domains: Sequence[str], test_labels: Int[np.ndarray, " n"]
) -> dict[str, Int[np.ndarray, " m"]]:
    """Row numbers of the closed-set and the open-set test.

    Closed: images whose domain is among training's. Open: images of the other domains. A class that has no image
    from an unseen domain (live irises, when only attack types are new) joins the open set with its images of seen
    domains, since a test needs both classes; symmetrically for the closed set.

    Returns:
      `{"closed": rows, "open": rows}`, without a key whose set would be empty: no `open` where training has seen
      every domain.
    """
    test_labels = np.asarray(test_labels)
    seen = np.isin(np.asarray(test_domains, dtype=str), np.asarray(sorted(set(train_domains)), dtype=str))
    parts = {}
    for name, member in (("closed", seen), ("open", ~seen)):
        if not member.any():
            continue
        missing = [label for label in np.unique(test_labels) if not member[test_labels == label].any()]
        parts[name] = np.flatnonzero(member | np.isin(test_labels, missing))
    return parts
