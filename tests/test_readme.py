"""The READMEs keep their word: commands are CI's, code runs, tables name what there is, files and links are there."""

import ast
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_backbones import PARAMETERS, count_parameters
from tiny_study import make_outcomes

from configs import default
from tfcam_jax import losses, strategies
from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.study.statistics import reading_order, study_statistics
from tfcam_jax.study.tables import overview

REPO = pathlib.Path(__file__).parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")
FOLDERS = ("tfcam_jax", "configs", "launch", "tests")
PAGES = [REPO / "README.md", *sorted(page for folder in FOLDERS for page in (REPO / folder).rglob("README.md"))]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))


def blocks(language, text=README):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for named, block in fenced if named == language]


def section(title):
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def links(text):
    """Targets of links and pictures; those within this repository, without the part after #."""
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    return [target.split("#")[0] for target in targets if not re.match(r"https?:", target)]


def backbone_rows():
    return re.findall(r"^\| `(\w+)` \| ([\d,]+) \| (\d+) px \| (\d+)x\d+ \| (\S+) \|", README, flags=re.MULTILINE)


def test_readme_takes_two_minutes():
    assert len(README.splitlines()) <= 220


def test_ci_calls_the_test_command():
    command = next(block for block in blocks("bash") if "pytest" in block).strip()
    assert command in (REPO / ".ci/run").read_text()


def test_the_demos_table_has_the_rows_and_columns_that_are_printed():
    table = next(block for block in blocks("") if block.startswith("arm "))
    strategies = list(default.get_config().compare.strategies)
    assert [line.split()[0] for line in table.splitlines()[1:]] == strategies
    outcomes = make_outcomes(dict.fromkeys(strategies, 1.0), seeds=1, sets=("closed", "open"))
    statistics = reading_order(study_statistics(outcomes, resamples=20))
    (printed,) = overview({"statistics": statistics, "reference": "cyborg"})
    assert tuple(re.split(r" {2,}", table.splitlines()[0])) == printed.header


def test_the_foreign_step_runs_and_learns():
    code = next(block for block in blocks("python") if "difference_loss" in block)
    assert len(code.strip().splitlines()) <= 17
    modules = set(re.findall(r"^from (\S+)", code, flags=re.MULTILINE))
    assert modules == {"tfcam_jax.cams", "tfcam_jax.losses", "tfcam_jax.saliency"}
    namespace = {}
    exec(code, namespace)
    rng = np.random.default_rng(0)
    params = {
        "conv": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32),
        "kernel": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
        "bias": jnp.zeros(2),
    }
    human_maps = rng.uniform(size=(6, 20, 12)).astype(np.float32)
    human_maps[0] = 0
    images = rng.normal(size=(6, 5, 4, 3)).astype(np.float32)
    batch = (jnp.asarray(images), jnp.asarray([0, 1, 0, 1, 0, 1]), jnp.asarray(human_maps))
    before = namespace["loss"](params, *batch)
    for _ in range(20):
        params = namespace["step"](params, *batch)
    assert namespace["loss"](params, *batch) < before
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_the_example_of_a_strategy_works():
    code = next(block for block in blocks("python") if "STRATEGIES[" in block)
    namespace = {"guided": strategies.guided, "losses": losses, "STRATEGIES": {}}
    exec(code, namespace)
    assert list(namespace["STRATEGIES"]) == ["true_energy"]
    assert len(code.strip().splitlines()) <= 6


def test_a_checkpoint_is_used_in_five_lines(trained_run, tmp_path, monkeypatch, capsys):
    code = next(block for block in blocks("python") if block.startswith("import tfcam_jax\n"))
    assert len(code.strip().splitlines()) <= 5 and '"runs/mine"' in code
    monkeypatch.chdir(tmp_path)
    names = re.findall(r'"(\w+\.png)"', code)
    for shade, name in enumerate(names):
        Image.new("RGB", (40, 48), (200 * shade,) * 3).save(name)
    namespace = {}
    capsys.readouterr()  # what training printed
    exec(code.replace('"runs/mine"', repr(os.fspath(trained_run))), namespace)
    found = namespace["found"]
    np.testing.assert_allclose(found.probabilities.sum(1), np.ones(len(names)), rtol=1e-5)
    np.testing.assert_allclose(found.difference, found.true_map - found.false_map, atol=1e-5)
    assert len(capsys.readouterr().out.splitlines()) == len(names) == 2


@every_page
def test_python_code_parses(page):
    for code in blocks("python", page.read_text(encoding="utf-8")):
        ast.parse(code)


def test_the_strategy_table_is_that_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| .*?\| (?:`(\w+)`|-) \|", section("Strategies"), flags=re.MULTILINE)
    assert [name for name, _ in rows] == sorted(strategies.STRATEGIES, key=[name for name, _ in rows].index)
    assert {name for name, _ in rows} == set(strategies.STRATEGIES)
    assert all(hasattr(losses, function) for _, function in rows if function)


def test_the_backbone_table_is_that_of_the_code():
    rows = backbone_rows()
    assert {row[0] for row in rows} <= set(MODELS)
    assert set(MODELS) <= set(re.findall(r"`(\w+)`", section("Backbones")))
    for name, parameters, size, cam, repository in rows:
        card = MODEL_CARDS[name]
        assert (int(size), int(cam), repository.strip("`")) == (card.image_size, card.cam_size, card.repository or "-")
        # Those with weights are counted in tests/test_backbones.py.
        counted = PARAMETERS[name] if card.repository else count_parameters(name, num_classes=2)
        assert int(parameters.replace(",", "")) == counted


def test_the_parity_table_holds_every_backbone_that_has_an_original():
    page = (REPO / "tfcam_jax/models/README.md").read_text(encoding="utf-8")
    compared = re.findall(r"^(\w+) +([\d,]+) +\d+  \w.* (?:\S+e-\d\d|-)$", page, flags=re.MULTILINE)
    originals = {name for name, card in MODEL_CARDS.items() if card.repository}
    assert {(name, int(count.replace(",", ""))) for name, count in compared} == {(n, PARAMETERS[n]) for n in originals}


@every_page
def test_files_that_a_readme_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w/.-]*[\w/]", text)
    missing = [name for name in named if not (REPO / name).exists()]
    assert named and not missing
    assert page != PAGES[0] or len(named) > 8


@every_page
def test_links_and_pictures_resolve(page):
    broken = [target for target in links(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()]
    assert not broken


def test_every_picture_is_shown():
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page.read_text(encoding="utf-8"))}
    assert not set((REPO / ".readme").resolve().iterdir()) - shown


def test_the_map_of_folders_leads_to_every_readme():
    reached = {REPO / target for target in links(section("Map of folders"))}
    assert set(PAGES[1:]) <= reached


def test_readme_says_how_to_cite_and_what_the_losses_are():
    last = section("Limits, licence, citing")
    assert "@software{tfcam_jax" in last and "reconstructions" in last
    assert {"2507.17000", "2112.00686"} <= set(re.findall(r"arXiv (\d{4}\.\d{5})", last))
