"""TFDS builders: the drawn demo, and the layouts of the three tasks' owners."""

from importlib import resources


def read_text(name: str) -> str:
    """A file beside this one: a builder's description (.md), citation (.bib) or how to obtain its data (.txt)."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
