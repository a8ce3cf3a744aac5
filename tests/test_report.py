"""The report on a finished run: files, figures, resuming, refusing, and the page in a real browser."""

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess

import jax
import numpy as np
import pydicom
import pytest
from absl import logging
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfcam_jax import explanation as report
from tfcam_jax.data.fingerprint import digest_fingerprint, take_fingerprint
from tfcam_jax.data.manifest import open_manifest_split
from tfcam_jax.data.outputs import write_folder
from tfcam_jax.data.source import DataError
from tfcam_jax.errors import OutputError
from tfcam_jax.experiment import open_dataset
from tfcam_jax.explanation import ReportError, explain, explain_source
from tfcam_jax.inference import restore
from tfcam_jax.report.map_grid import Panel, Row, draw_panels
from tfcam_jax.report.page import embed
from tfcam_jax.report.pictures import colorize, crop, own_scale, pack_maps, sheet, values_range

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def workdir(trained_run):
    return trained_run


@pytest.fixture(scope="module")
def written(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports") / "test"
    explain(workdir, out, split="test")
    return out


@pytest.fixture(scope="module")
def figures(written):
    return json.loads((written / "figures.json").read_text())


def test_report_holds_page_figures_and_a_picture_of_each_image(written, figures):
    assert sorted(path.name for path in written.iterdir()) == ["figures.json", "images", "index.html", "mean_maps.png"]
    assert [entry["row"] for entry in figures["images"]] == list(range(12))
    for entry in figures["images"]:
        with Image.open(written / entry["png"]) as picture:
            picture.load()
            assert picture.width > 5 * 160
    assert len(list((written / "images").iterdir())) == 12
    assert [path.name for path in written.parent.iterdir()] == ["test"]


def test_figures_of_each_image_add_up_to_its_margin(figures):
    for entry in figures["images"]:
        parts = sum(region["contribution"] for region in entry["regions"]) + entry["rest"]
        assert parts == pytest.approx(entry["mean_difference"], abs=1e-6)
        assert parts + entry["bias_difference"] == pytest.approx(entry["margin"], abs=1e-4)
        z = entry["logits"][:: -1 if entry["label"] == "bright" else 1]
        assert entry["margin"] == pytest.approx(z[0] - z[1], abs=1e-4)
        assert entry["p"] == pytest.approx(1 / (1 + np.exp(-entry["margin"])), abs=1e-4)
        assert entry["right"] == (entry["label"] == entry["prediction"])


def test_library_call_gives_the_arrays_behind_the_report(workdir, written, figures):
    trained = restore(workdir)
    batches = list(explain_source(trained, open_dataset(trained.recipe).splits["test"]))
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(12))
    one = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[batch.output for batch in batches])
    gaps = np.concatenate([batch.agreement["fooling_gap"] for batch in batches])
    for name, values in (("margin", one.margin), ("fooling_gap", gaps)):
        np.testing.assert_allclose([entry[name] for entry in figures["images"]], values, rtol=1e-6)
    assert [entry["true_agreement"] is not None for entry in figures["images"]] == one.usable.tolist()
    # Means over the set, and the maps inside the page.
    summary = figures["summary"]
    labels = np.array([entry["label"] for entry in figures["images"]])
    for name in ("dark", "bright"):
        expected = one.difference[labels == name].mean(0)
        np.testing.assert_allclose(summary["mean_maps"][f"class {name}"]["difference"], expected, atol=1e-5)
    new = np.array([entry["domain"] for entry in figures["images"]]) == "new"
    assert summary["mean_maps"]["domain new"]["images"] == new.sum()
    page = (written / "index.html").read_text()
    pictures = json.loads(re.search(r'<script type="application/json" class="pictures">(.*?)</script>', page)[1])
    shown = np.frombuffer(base64.b64decode(pictures[3]["maps"]), "<i2").reshape(3, 4, 4) / 32767 * pictures[3]["reach"]
    np.testing.assert_allclose(shown[2], one.difference[3], atol=1e-3)


def test_most_carrying_regions_are_ranked(figures):
    found = [abs(region["contribution"]) for region in figures["summary"]["regions"]]
    assert found == sorted(found, reverse=True)
    everywhere = [abs(r["contribution"]) for entry in figures["images"] for r in entry["regions"][:3]]
    assert found == sorted(everywhere, reverse=True)[: len(found)]


def test_page_needs_no_network(written):
    page = (written / "index.html").read_text()
    assert not re.findall(r'(?:src|href)\s*=\s*["\'](?!data:)', page) and not re.search("https?:", page)
    assert "@import" not in page and "url(" not in page


def test_text_of_the_data_cannot_end_a_script():
    value = {"id": "</script><b>&\u2028"}
    text = str(embed(value))
    assert "<" not in text and "&" not in text and json.loads(text) == value


@pytest.mark.slow
def test_report_that_was_cut_off_goes_on_where_it_stopped(workdir, written, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "CHUNK", 5)
    out, chunk, made = tmp_path / "report", report._chunk, []

    def dies_in_the_third(batches, records, names, start, staging, longest):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(start)
        return chunk(batches, records, names, start, staging, longest)

    monkeypatch.setattr(report, "_chunk", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        explain(workdir, out, split="test")
    assert not out.exists() and made == [0, 5]
    monkeypatch.setattr(report, "_chunk", lambda *a: made.append(a[3]) or chunk(*a))
    explain(workdir, out, split="test")
    assert made == [0, 5, 10]
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    whole, again = (json.loads((folder / "figures.json").read_text()) for folder in (written, out))
    for one, other in zip(whole["images"], again["images"], strict=True):
        assert other["margin"] == pytest.approx(one["margin"], abs=1e-5) and other["png"] == one["png"]
    np.testing.assert_allclose(
        again["summary"]["mean_maps"]["all images"]["difference"],
        whole["summary"]["mean_maps"]["all images"]["difference"],
        atol=1e-5,
    )


@pytest.mark.slow
def test_report_that_was_cut_off_is_begun_anew_of_other_images(workdir, tmp_path, monkeypatch, caplog):
    """Names, labels and groups are the same; of its folder nothing but what an image and its map show changes."""
    data, out, chunk = shutil.copytree(workdir.parent / "data", tmp_path / "data"), tmp_path / "report", report._chunk
    monkeypatch.setattr(report, "CHUNK", 5)
    monkeypatch.setattr(
        report, "_chunk", lambda *a: chunk(*a) if a[3] < 10 else (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        explain(workdir, out, data=data / "manifest.csv")
    monkeypatch.setattr(report, "_chunk", chunk)
    shutil.copy(data / "images/test5.png", data / "images/test0.png")
    shutil.copy(data / "maps/test4.png", data / "maps/test2.png")
    explain(workdir, out, data=data / "manifest.csv")
    told = "begun anew, as it is of other data: manifest.csv, test: content of 1 image (images/test0.png); "
    assert f"{told}manifest.csv, test: human maps of 1 image (images/test2.png)" in caplog.text
    figures = json.loads((out / "figures.json").read_text())
    assert figures["images"][0]["logits"] == pytest.approx(figures["images"][5]["logits"])
    source = open_manifest_split(data / "manifest.csv", "test", ("dark", "bright"), 3).source
    fingerprint = take_fingerprint(("dark", "bright"), {"manifest.csv, test": source})
    assert figures["about"]["data_fingerprint"] == digest_fingerprint(fingerprint)


@pytest.mark.slow
def test_leftovers_of_another_report_are_not_taken(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_page", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        explain(workdir, tmp_path / "report", split="val")
    monkeypatch.undo()
    explain(workdir, tmp_path / "report", split="test")
    assert len(json.loads((tmp_path / "report/figures.json").read_text())["images"]) == 12
    assert len(list((tmp_path / "report/images").iterdir())) == 12


def test_images_of_any_mode_and_size_without_labels(workdir, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 70, 4), np.uint8)
    Image.fromarray(pixels).save(folder / "rgba.png")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.jpg")
    Image.fromarray(pixels[..., 0]).convert("1").save(folder / "bilevel.png")
    Image.fromarray(pixels[:5, :3, 0].astype(np.uint16) * 257).save(folder / "deep.tiff")
    Image.fromarray(pixels[..., :3]).convert("P").save(folder / "palette.gif")
    explain(workdir, tmp_path / "report", images=folder)
    found = json.loads((tmp_path / "report/figures.json").read_text())
    assert [entry["id"] for entry in found["images"]] == [
        "bilevel.png",
        "deep.tiff",
        "grey.jpg",
        "palette.gif",
        "rgba.png",
    ]
    for entry in found["images"]:
        assert entry["label"] is None and entry["right"] is None and entry["margin"] > 0
    assert found["summary"]["figures"]["accuracy"] is None


def write_dicom(path, grey, frames=1):
    """A film as a scanner writes it, 12 bits."""
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = pydicom.uid.generate_uid()
    file.Rows, file.Columns = grey.shape
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    if frames > 1:
        file.NumberOfFrames = frames
    file.PixelData = grey.astype(np.uint16).tobytes() * frames
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def test_a_folder_of_dicom_is_explained_whatever_its_files_are_called(workdir, tmp_path, caplog):
    logging.get_absl_logger().propagate = True
    folder = tmp_path / "disk"
    rng = np.random.default_rng(0)
    names = ["DICOM/1.2.840.113619.2.5", "DICOM/IM0001", "a.dcm", "b.IMA"]
    for name in names:
        write_dicom(folder / name, rng.integers(0, 4096, (40, 40)))
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(9))
    (folder / "readme").write_text("Films")
    explain(workdir, tmp_path / "report", images=folder)
    found = json.loads((tmp_path / "report/figures.json").read_text())
    assert [entry["id"] for entry in found["images"]] == names
    assert "2 files are no images and were left out: DICOMDIR, readme" in caplog.text
    write_dicom(folder / "a.dcm", rng.integers(0, 4096, (40, 40)), frames=2)
    with pytest.raises(DataError, match=r"a\.dcm: 2 pages, slices or frames in one file"):
        explain(workdir, tmp_path / "other", images=folder)


def test_what_can_not_be_explained_leaves_nothing_behind(workdir, tmp_path):
    out, folder = tmp_path / "report", tmp_path / "photographs"
    folder.mkdir()
    with pytest.raises(DataError, match="no image in it"):
        explain(workdir, out, images=folder)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"broken\.png"):
        explain(workdir, out, images=folder)
    with pytest.raises(ReportError, match="either"):
        explain(workdir, out, images=folder, split="test")
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(ReportError, match="not empty"):
        explain(workdir, out)
    assert (out / "thesis.tex").read_text() == "precious"


def test_pictures_by_hand():
    ends = colorize(np.array([[-1.0, 0, 1]]), -1.0, 1.0).astype(int)
    assert ends[0, 0, 2] > ends[0, 0, 0] + 50 and ends[0, 2, 0] > ends[0, 2, 2] + 50 and ends[0, 1].min() > 240
    assert len(np.unique(colorize(np.ones((2, 2)), 1.0, 1.0))) <= 3
    image = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    np.testing.assert_array_equal(crop(image, (1, 2, 3, 4), (4, 4)), image[8:56, 24:64])
    assert pack_maps(np.zeros((1, 2, 2), np.float32))[1] == 0


def is_blue(picture):
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    return blue > red + 3


def is_red(picture):
    return is_blue(picture[..., ::-1])


@given(st.integers(0, 10**6), st.floats(0.0, 50.0))
def test_colours_of_a_difference_are_its_signs(seed, above):
    """Blue only below zero and red only above, however far the map lies from zero; the largest magnitude is darkest."""
    positive = np.random.default_rng(seed).uniform(above, above + 10, (4, 5)).astype(np.float32)
    assert not is_blue(colorize(positive, *own_scale(positive, signed=True))).any()
    assert not is_red(colorize(-positive, *own_scale(-positive, signed=True))).any()
    mixed = positive - positive.mean()
    picture = colorize(mixed, *own_scale(mixed, signed=True))
    assert not is_blue(picture[mixed > 0]).any() and not is_red(picture[mixed < 0]).any()
    assert is_blue(picture).any() and is_red(picture).any()
    assert picture.reshape(-1, 3).astype(int).sum(1).argmin() == np.abs(mixed).argmax()
    ends = colorize(positive, *own_scale(positive, signed=False)).reshape(-1, 3)
    assert is_blue(ends[positive.argmin()]) and is_red(ends[positive.argmax()])


def test_no_picture_of_a_positive_difference_has_blue_in_it(tmp_path):
    """7.4 to 17.4, on an image's sheet and on a grid of maps; as T the same map is blue where it is lowest."""
    values = np.linspace(7.4, 17.4, 16, dtype=np.float32).reshape(4, 4)
    grey = np.full((20, 20, 1), 128, np.uint8)
    blue = {}
    for signed in (True, False):
        drawn = sheet(grey, None, {"D": values}, {"D"} if signed else (), "", [])
        blue["sheet", signed] = is_blue(np.asarray(drawn)).sum()
        draw_panels([Row("", [Panel("input", grey), Panel("D", values, signed)])], tmp_path / "grid.png", "")
        with Image.open(tmp_path / "grid.png") as picture:
            blue["grid", signed] = is_blue(np.asarray(picture.convert("RGB"))).sum()
    assert blue["sheet", True] == blue["grid", True] == 0
    assert blue["sheet", False] > 1000 and blue["grid", False] > 1000
    assert values_range(values, signed=True) == "7.4 to 17.4, white 0" and values_range(values, False) == "7.4 to 17.4"


def test_columns_that_are_empty_in_every_row_are_left_out(tmp_path):
    grey, values = np.full((20, 20, 1), 128, np.uint8), np.eye(4)
    row = lambda human: Row("", [Panel("input", grey), Panel("human map", human), Panel("T", values)])
    widths = []
    for rows in ([row(None), row(None)], [row(None), row(values)]):
        draw_panels(rows, tmp_path / "grid.png", "")
        with Image.open(tmp_path / "grid.png") as picture:
            widths.append(picture.width)
    assert widths[0] == widths[1] * 3 // 4


PROBE = """
<script>
const errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
window.addEventListener("load", () => setTimeout(() => {
  const choose = (name, value) => { $(name).value = value; $(name).dispatchEvent(new Event("change")); };
  const margins = () => state.chosen.map((index) => entries[index].margin);
  const result = { all: $("count").textContent, cards: document.querySelectorAll(".card").length };
  result.made = state.chosen.at(-1); entries[result.made].cosmetic = true;
  choose("kind", ""); result.first = state.chosen[0];
  choose("kind", "cosmetic"); result.cosmetic = state.chosen; choose("kind", "");
  choose("label", "=bright"); result.bright = state.chosen.map((index) => entries[index].id);
  choose("kind", "wrong"); result.wrong = state.chosen.length;
  choose("label", ""); choose("kind", ""); choose("domain", "=new"); result.domain = state.chosen.length;
  choose("domain", ""); choose("sort", "margin"); result.rising = margins();
  choose("sort", "-margin"); result.falling = margins();
  $("text").value = "test7"; $("text").dispatchEvent(new Event("input")); result.text = $("count").textContent;
  const before = document.documentElement.dataset.theme; $("theme").click();
  result.themes = [before, document.documentElement.dataset.theme].sort();
  document.querySelector("#regions button").click(); result.target = document.querySelectorAll(".card.target").length;
  const positive = [[7.4, 9], [12, 17.4]];
  result.blue = [true, false].map((signed) => {
    const canvas = element("canvas", { width: 8, height: 8 });
    drawMap(canvas, positive, ...ownOrShared(positive, signed, null));
    const pixels = canvas.getContext("2d").getImageData(0, 0, 8, 8).data;
    return pixels.filter((_, at) => at % 4 === 2 && pixels[at] > pixels[at - 2] + 3).length;
  });
  result.legend = ["low", "high", "white"].map((name) => $(name).textContent).join(" | ");
  result.overflow = document.documentElement.scrollWidth - innerWidth;
  result.errors = errors;
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(result);
  document.body.append(out);
}, 400));
</script>
"""


@pytest.mark.end_to_end
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1300])
def test_page_in_a_browser(written, figures, tmp_path, width):
    """The page with a probe in front, which chooses and sorts as a user does and leaves what it saw in the page."""
    page = (written / "index.html").read_text()
    script = re.search("<script>(.*?)</script>", PROBE, re.DOTALL)[1]
    allowed = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}' "
    foreign = "<script>document.title = 1</script><img src=x onerror='document.title = 1'>" * (width < 1000)
    page = page.replace("script-src ", allowed, 1).replace("<body>", f"<body>{PROBE}{foreign}", 1)
    (tmp_path / "page.html").write_text(page)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000"
    command = [CHROMIUM, *flags.split(), *more.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    # The page's own style and script break no rule of it; what a name might bring does, and does not run.
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(told) == (3 if foreign else 0) and all("Content Security Policy" in line for line in told)
    assert "<title>1</title>" not in done.stdout
    found = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    entries = figures["images"]
    assert found["errors"] == []
    assert found["blue"][0] == 0 < found["blue"][1]  # as D and as T
    assert "T, U: lowest; D: against the true class" in found["legend"] and "White is 0 in D" in found["legend"]
    assert found["all"] == "12 of 12 images" and found["cards"] == 12
    cosmetic = {entry["row"] for entry in entries if entry["cosmetic"]}
    assert set(found["cosmetic"]) == cosmetic | {found["made"]}  # the last of the list was made so, and came first
    assert found["first"] in cosmetic | {found["made"]}
    assert sorted(found["bright"]) == sorted(entry["id"] for entry in entries if entry["label"] == "bright")
    assert found["wrong"] == sum(entry["label"] == "bright" and not entry["right"] for entry in entries)
    assert found["domain"] == 6 and found["text"] == "1 of 12 images"
    margins = sorted(entry["margin"] for entry in entries)
    assert found["rising"] == margins and found["falling"] == margins[::-1]
    assert found["themes"] == ["dark", "light"] and found["target"] == 1 and found["overflow"] <= 0


def test_two_reports_at_once_in_a_folder(workdir, tmp_path):
    with write_folder(tmp_path / "report", keep=True) as partial:
        (partial / "of_the_first").touch()
        with pytest.raises(OutputError, match=rf"another process is writing .*report \(host .*, pid {os.getpid()}\)"):
            explain(workdir, tmp_path / "report", split="val")
        assert [path.name for path in partial.iterdir()] == ["of_the_first"]


def test_a_report_among_the_images_that_it_is_of_is_refused(workdir, tmp_path):
    with pytest.raises(ReportError, match=r"lies in .*, the folder of images"):
        explain(workdir, tmp_path / "photos" / "report", images=tmp_path / "photos")
    assert not list(tmp_path.iterdir())
