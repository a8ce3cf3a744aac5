"""Every file in configs/ is a config: the default's keys, values that fit, parts that can be built."""

import importlib.util
import inspect
import json
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from configs import default
from tfcam_jax.data.transforms import Augment
from tfcam_jax.errors import ConfigError
from tfcam_jax.experiment import resolve
from tfcam_jax.models import MODEL_CARDS
from tfcam_jax.run.config_values import VALUES, check_value, check_values
from tfcam_jax.strategies import STRATEGIES, strategy_options
from tfcam_jax.study.plan import placebo_arms, plan_arms

REPO = pathlib.Path(__file__).parent.parent
FILES = sorted((REPO / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_variants(config):
    """A copy of the config's own keys; how variants are called is their author's choice."""
    own = config.copy_and_resolve_references()
    own.compare.variants = ConfigDict()
    return own


def leaves(tree, prefix=""):
    for key, kind in tree.items():
        yield from leaves(kind, f"{prefix}{key}.") if isinstance(kind, dict) else [(f"{prefix}{key}", kind)]


def flatten(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_has_the_defaults_keys_and_can_be_built(path):
    config = load(path).get_config()
    assert dict(flatten(without_variants(config))).keys() == dict(flatten(default.get_config())).keys()
    if config.data.source == "manifest" and not config.data.manifest:
        config.data.manifest = "any.csv"
    if config.data.source == "folders" and not config.data.folders.images:
        config.data.folders.images = "any"
    resolve(config).make_model(num_classes=2)
    Augment(**config.augment)
    arms = plan_arms(config)
    assert len(arms) == len(set(config.compare.strategies)) + len(config.compare.variants) + len(
        [name for names in placebo_arms(config).values() for name in names]
    )


def test_the_table_of_values_has_the_defaults_keys_and_takes_its_values():
    config = default.get_config()
    keys = lambda tree: {key: keys(value) if hasattr(value, "items") else None for key, value in tree.items()}
    known = keys(VALUES)
    known["compare"]["variants"] = {}
    assert known == keys(config)
    check_values(config.to_dict())


HUGE = (10**18, 10**5000, 1e300, -1e300)
NOT_FINITE = (math.nan, math.inf, -math.inf)
ODD = (True, None, 1.5, -1, -1.0, 0, 1, 1e-50, *HUGE, *NOT_FINITE, "", "x", "\0", b"x", 1j, {}, {"a": 1}, object())
ODD += ((), (1,), ("a",), (math.nan,) * 3, (True,), {1}, range(3))


def test_any_value_of_any_key_is_refused_by_its_key_or_one_that_json_and_float32_hold():
    for place, kind in leaves(VALUES, "config."):
        for value in ODD:
            try:
                check_value(place, value, kind)
            except ConfigError as error:
                assert str(error).startswith(f"{place} is "), (place, value)
            else:
                json.dumps(value, allow_nan=False)
                assert isinstance(value, str | tuple | dict | None) or (abs(value) <= 1e18 and value != 1e-50), place
                assert not isinstance(value, bool) or "True" in kind.told, place


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_says_what_it_is_for_and_how_it_is_run(path):
    assert path.stem == "default" or f"--config=configs/{path.name}" in load(path).__doc__


def test_every_option_of_a_strategy_stands_in_the_default_config():
    options = {option for name in STRATEGIES for option in strategy_options(name)}
    assert options == set(default.get_config().guidance.keys())


def test_every_augmentation_stands_in_the_default_config():
    assert set(inspect.signature(Augment).parameters) == set(default.get_config().augment.keys())


@pytest.mark.parametrize("name", ["densenet121", "resnet50", "inception_v3", "xception"])
def test_the_cyborg_recipe_by_backbone(name):
    """What depends on the backbone, and that other strategies take the recipe without what is cyborg's own."""
    get_config = load(REPO / "configs/cyborg_recipe.py").get_config
    config, other = get_config(name), get_config(f"{name},difference")
    assert config.model.dropout == (0.5 if name == "inception_v3" else 0)
    assert config.model.batch_norm_momentum == (0.81 if name == "densenet121" else 0.9)
    assert other.model.batch_norm_momentum == 0.9 and other.model.dropout == config.model.dropout
    config.data.manifest = other.data.manifest = "any.csv"
    recipe = resolve(config)
    assert recipe.map_size == MODEL_CARDS[name].cam_size and recipe.strategy_name == "cyborg"
    model = recipe.make_model(num_classes=2)
    assert (model.dropout, model.batch_norm_momentum) == (config.model.dropout, config.model.batch_norm_momentum)
    assert (model.head_init, recipe.guidance["cam_features"]) == ("pytorch", "hooked")
    assert resolve(other).strategy_name == "difference"


def test_the_viser_recipe_is_cyborgs_but_for_weight_and_blur():
    load_config = lambda name, *chosen: load(REPO / f"configs/{name}_recipe.py").get_config(*chosen)
    cyborg, viser = (dict(flatten(load_config(name))) for name in ("cyborg", "viser"))
    changed = {key: value for key, value in viser.items() if value != cyborg[key]}
    assert changed == {"guidance.weighting": "loss_share", "augment.map_blur": (0.1, 2.0)}
    baseline = load_config("viser", "cross_entropy")
    baseline.data.manifest = "any.csv"
    assert not resolve(baseline).loss_share and resolve(baseline).augment.map_blur == ()


def test_the_default_is_the_cyborg_recipe():
    """Boyd et al., WACV 2023, as the method text states it."""
    config = default.get_config()
    recipe = load(REPO / "configs/cyborg_recipe.py").get_config()
    assert MODEL_CARDS[recipe.model.name].image_size == 224 and recipe.data.image_size is None
    assert recipe.model.weights == "imagenet"
    assert (config.batch_size, config.epochs) == (20, 50)
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == ("sgd", 5e-3, 1e-6)
    assert config.optimizer.schedule == "step" and config.evaluation.select_by == "accuracy"
    assert Augment(**config.augment) == Augment()
