"""README keeps its word: its commands are CI's, its code runs, its tables name what there is."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from tfcam_jax import losses, strategies
from tfcam_jax.models import MODEL_CARDS, MODELS

REPO = pathlib.Path(__file__).parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_ci_calls_the_test_command():
    command = next(block for block in blocks("bash") if "pytest" in block).strip()
    assert command in (REPO / ".ci/run").read_text()


def test_the_foreign_step_runs_and_learns():
    code = next(block for block in blocks("python") if "difference_loss" in block)
    assert len(code.strip().splitlines()) <= 15
    assert set(re.findall(r"^from (\S+)", code, flags=re.MULTILINE)) == {"tfcam_jax.cams", "tfcam_jax.losses"}
    namespace = {}
    exec(code, namespace)
    rng = np.random.default_rng(0)
    params = {
        "conv": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32),
        "kernel": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
        "bias": jnp.zeros(2),
    }
    saliency = rng.uniform(size=(6, 5, 4)).astype(np.float32)
    saliency[0] = 0
    images = rng.normal(size=(6, 5, 4, 3)).astype(np.float32)
    batch = (jnp.asarray(images), jnp.asarray([0, 1, 0, 1, 0, 1]), jnp.asarray(saliency))
    before = namespace["loss"](params, *batch)
    for _ in range(20):
        params = namespace["step"](params, *batch)
    assert namespace["loss"](params, *batch) < before
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_the_example_of_a_strategy_works():
    code = next(block for block in blocks("python") if "STRATEGIES[" in block)
    namespace = {"_guided": strategies._guided, "losses": losses, "STRATEGIES": {}}
    exec(code, namespace)
    assert list(namespace["STRATEGIES"]) == ["true_energy"]
    assert len(code.strip().splitlines()) <= 6


def test_the_strategy_table_is_that_of_the_code():
    section = README.split("## Strategies")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .*?\| (?:`(\w+)`|-) \|", section, flags=re.MULTILINE)
    assert [name for name, _ in rows] == sorted(strategies.STRATEGIES, key=[name for name, _ in rows].index)
    assert {name for name, _ in rows} == set(strategies.STRATEGIES)
    assert all(hasattr(losses, function) for _, function in rows if function)


def test_the_backbone_table_is_that_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| (\d+) px \| (\d+)x\d+ \| (\S+) \|", README, flags=re.MULTILINE)
    assert {row[0] for row in rows} == set(MODELS)
    for name, parameters, size, cam, repository in rows:
        card = MODEL_CARDS[name]
        assert (int(size), int(cam), repository.strip("`")) == (card.image_size, card.cam_size, card.repository or "-")
        model = MODELS[name](num_classes=1000 if card.repository else 2)
        image = jnp.zeros((1, card.image_size, card.image_size, 3))
        shapes = jax.eval_shape(lambda model=model, image=image: model.init(jax.random.key(0), image, train=False))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == int(parameters.replace(",", ""))


def test_files_that_readme_names_are_there():
    named = re.findall(r"`((?:tfcam_jax|configs|launch|tests)/[\w/.]*)`", README)
    missing = [name for name in named if not (REPO / name).exists()]
    assert len(named) > 8 and not missing
