"""Values of a parametrised test of which a few are looked at in every run of the suite, and all with `-m slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *quick: Any) -> list[Any]:
    """The values for `pytest.mark.parametrize`, all but `quick` marked slow; tuples are several arguments."""
    values = list(values)
    assert all(value in values for value in quick)
    several = lambda value: value if isinstance(value, tuple) else (value,)
    return [value if value in quick else pytest.param(*several(value), marks=pytest.mark.slow) for value in values]
