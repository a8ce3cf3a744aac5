"""Names are data: labels, domains, arms and files whose names mean something to Matplotlib, a terminal, a spreadsheet
or Markdown are shown as they are called."""

import base64
import csv
import hashlib
import io
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from test_per_protocol_metrics import make_scores
from tiny_study import make_outcomes

from tfcam_jax.data.checks.report import align as align_report
from tfcam_jax.data.csv_cells import csv_text, from_cell, to_cell
from tfcam_jax.data.manifest import list_manifest
from tfcam_jax.data.source import DataError
from tfcam_jax.errors import visible
from tfcam_jax.metrics.scores import read_scores, write_scores
from tfcam_jax.metrics.tables import Table, markdown_text
from tfcam_jax.report.map_grid import Panel, Row, draw_panels
from tfcam_jax.report.page import embed, template
from tfcam_jax.report.pictures import sheet
from tfcam_jax.run.terminal import escape_streams
from tfcam_jax.study.page import write_study
from tfcam_jax.study.plots import theme
from tfcam_jax.study.statistics import study_statistics

FORMULAS = ["=1+1", "+1-1", "-x", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''@", "=", "-", "- 1"]
PLAIN = ["a", "'a", "", " =1", "1", "-1", "+1.5e-3", "-.5", "-1 -2", "a=b", "'", "x-y"]
HOSTILE = ["under $5_", "$a_{ and $b", "</script><script>x", "a|`b`[c](http://d)", "\x1b[31mred\u202e", "=1+1"]


def test_what_a_terminal_obeys_is_shown_and_all_else_stays():
    assert visible("a\x1b[2J\r\nb\u202ec\ud800\x9b\u2028\U000e0041") == (
        r"a\x1b[2J\r\nb\u202ec\ud800\x9b\u2028\U000e0041"
    )
    assert visible("a\n\tb\x07", keep="\n\t") == "a\n\tb\\x07"
    plain = "Ünïcödé 漢字 हिन्दी क\u200dष 👩\u200d🔬 $x_{1}$ <b> \\n ~"  # joiners are letters' business
    assert visible(plain) == plain


def test_streams_of_scripts_escape_and_leave_lines_and_bars(monkeypatch):
    out, err = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    escape_streams()
    escape_streams()  # as each script may
    print("a\x1b]0;title\x07\nb")
    sys.stderr.writelines(["\r 10% \udce9", "\u202e\n"])
    sys.stderr.flush()
    assert out.getvalue() == "a\\x1b]0;title\\x07\nb\n"
    assert err.buffer.getvalue().decode() == "\r 10% \\udce9\\u202e\n" and not sys.stderr.isatty()


def test_errors_and_tables_of_text_have_a_line_for_each_line():
    table = Table("t\n", ("arm", "x"), [("a\nb\x1b", "1"), ("cc", "2\r")])
    assert table.text().splitlines() == ["t\\n", "arm         x", "a\\nb\\x1b    1", "cc        2\\r"]
    assert align_report([("a\n", "1")]) == ["a\\n  1"]
    error = DataError(["row 2: a\nerror: all is well\x1b[1A", "row 3"])
    assert str(error).splitlines()[1:] == ["row 2: a\\nerror: all is well\\x1b[1A", "row 3"]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_name_is_a_formula_and_each_comes_back(name):
    assert to_cell(name) == f"'{name}" and from_cell(to_cell(name)) == name


@pytest.mark.parametrize("value", [*PLAIN, -1.5, 3, None, True])
def test_numbers_and_other_names_stay_as_they_are(value):
    assert to_cell(value) is value and (not isinstance(value, str) or from_cell(value) == value)


@given(st.text("=+-@'\t\ra1.", max_size=6))
def test_every_name_comes_back(name):
    (row,) = csv.reader(io.StringIO(csv_text([[name, "x"]]), newline=""))
    assert from_cell(row[0]) == name
    assert not re.match(r"[=+\-@\t\r]", row[0]) or re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", row[0])


def test_scores_and_manifests_of_such_names_are_read_as_they_were(tmp_path):
    scores = make_scores(n=2 * len(FORMULAS))
    names = tuple(FORMULAS) * 2
    scores = type(scores)(names, scores.splits, scores.labels, names, names, scores.seen, scores.logits)
    write_scores(tmp_path / "scores.csv", scores, ("-live", "=attack"))
    read, classes = read_scores(tmp_path / "scores.csv")
    assert (read.ids, read.domains, read.groups, classes) == (names, names, names, ("-live", "=attack"))
    np.testing.assert_array_equal(read.labels, scores.labels)
    rows = [
        ["split", "label", "image", "domain"],
        *(["train", name, f"-{i}.png", name] for i, name in enumerate(HOSTILE)),
    ]
    (tmp_path / "manifest.csv").write_text(csv_text(rows), encoding="utf-8")
    listed = list_manifest(str(tmp_path / "manifest.csv")).rows
    assert [(row.label, row.image, row.domain) for row in listed] == [
        (n, f"-{i}.png", n) for i, n in enumerate(HOSTILE)
    ]


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("a_b", "a_b"),
        ("_a_ __b", r"\_a\_ \_\_b"),
        ("a|b`c`", r"a\|b\`c\`"),
        ("[x](http://y) www.z", r"\[x\](http\://y) www\.z"),
        ("![x](y) <b> a < b &amp; &", r"!\[x\](y) \<b> a < b \&amp; &"),
        ("*a* 2 * 3 ~$x$\\", r"\*a\* 2 * 3 \~\$x\$" + "\\\\"),
        ("# a\n\n- b #", r"\# a - b \#"),
        ("1. a", r"1\. a"),
        ("1.5", "1.5"),
        ("- a", r"\- a"),
        ("-0.5", "-0.5"),
        ("a\x1b", r"a\\x1b"),
    ],
)
def test_markdown_shows_names_as_they_are(name, escaped):
    assert markdown_text(name) == escaped
    cell = (
        escaped[1:] if name[0] in "#-" and escaped[0] == "\\" else escaped.replace("1\\.", "1.")
    )  # no line begins there
    assert Table("t", ("a", "b"), [(name, "1")]).markdown().splitlines()[-1] == f"| {cell} | 1 |"


def test_pictures_of_such_names_are_drawn(tmp_path):
    rows = [Row(f"{name}\ncalled {name}", [Panel(name, np.eye(4))]) for name in HOSTILE]
    draw_panels(rows, tmp_path / "grid.png", HOSTILE[1])
    with Image.open(tmp_path / "grid.png", formats=("PNG",)) as grid:
        assert grid.width > 100
    with theme("light"):
        figure = Figure()
        figure.text(0, 0, HOSTILE[1])
        figure.draw_without_rendering()
    assert sheet(np.zeros((8, 8, 3), np.uint8), None, {"T": np.eye(4)}, (), "\ud800$a_{\n", []).width > 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_study_of_such_arms_is_written(tmp_path):
    """All but one plot, page and table hold every arm's name; and none of its HTML is."""
    arms = {"cyborg": 1.0, **{name: 1.2 for name in HOSTILE[:4]}}
    outcomes = make_outcomes(arms, seeds=2, images=40, groups=10, sets=("val", "open"))
    write_study(tmp_path, outcomes, {}, {}, strategies={arm: "cyborg" for arm in arms}, resamples=20)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "&lt;/script&gt;&lt;script&gt;x" in page
    assert "under $5_" in (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert len(study_statistics(outcomes, resamples=20)) == 2


def test_nothing_that_a_page_embeds_ends_its_element():
    assert not re.search("[<>&\u2028\u2029]", embed(["</script><!--", "\u2028", {"&": "\u2029"}]))


def test_a_page_allows_its_own_style_and_script_alone():
    page = template("page.html").render()
    policy = dict(part.split(" ", 1) for part in re.search('Policy" content="(.*?)">', page)[1].split("; "))
    for element, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(rule) == f"'sha256-{digest}'"
    none = dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
    assert policy == none | {"img-src": "data:"}
    assert page.index("Content-Security-Policy") < page.index("<style>") and not re.search(r'\s(on\w+|style)="', page)
