"""Pages as one HTML file that needs nothing else: figures, pictures, style and script are inside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup

from ..metrics.tables import markdown_text


def template(name: str, package: str = "tfcam_jax.report") -> Template:
    """A page of the templates of a package, which may extend and include those of this one."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("tfcam_jax.report")]),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": markdown_text, "sha256": _sha256}
    return environment.get_template(name)


def _sha256(text: str) -> Markup:
    """What a Content-Security-Policy allows the inline style or script of that text by."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")


def write_page(path: Path, about: dict[str, Any], summary: dict[str, Any], chunks: list[Path]) -> None:
    """Writes the page of a report on a run, one chunk after the other.

    `about` is as in `explanation.explain`, `summary` of `summary.summarize`; chunks hold `entries` and `pictures`.
    """
    stream = template("report.html").stream(
        about=about,
        has_maps=summary["figures"]["maps"] > 0,
        data=embed({"about": about, "summary": summary}),
        entries=(embed(chunk["entries"]) for chunk in read_chunks(chunks)),
        pictures=(embed(chunk["pictures"]) for chunk in read_chunks(chunks)),
    )
    with path.open("w", encoding="utf-8") as file:
        file.writelines(stream)


def embed(value: Any) -> Markup:
    """JSON that can stand in a `<script>` element: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def read_chunks(chunks: list[Path]) -> Iterator[dict[str, Any]]:
    """What the chunks of `explanation.explain` hold, one after the other."""
    for path in chunks:
        yield json.loads(path.read_text(encoding="utf-8"))
