"""Strategies: which terms enter, for which examples, with which weight. Run over the whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfcam_jax import cams, losses
from tfcam_jax.divergences import DIVERGENCES, l1
from tfcam_jax.models import ModelOutput
from tfcam_jax.models.contract import MultiLabelOutput
from tfcam_jax.saliency import to_cam_resolution
from tfcam_jax.strategies import STRATEGIES, UNMARKED, make_strategy, strategy_options
from tfcam_jax.terms import Evidence, Term, reduce_terms

GUIDED = sorted(set(STRATEGIES) - {"cross_entropy"})
WITHOUT_HUMAN_MAPS = {"entropy", "hard_negative", "consistency"}


def make_evidence(classes=2, batch=6, seed=0, progress=0.0):
    """Random evidence: example 0 has no human map, example 1 is padding."""
    rng = np.random.default_rng(seed)
    features = jnp.asarray(rng.gamma(1.0, size=(batch, 4, 5, 7)), jnp.float32)
    kernel = jnp.asarray(rng.normal(0.7, size=(7, classes)), jnp.float32)  # some of every map is positive
    bias = jnp.asarray(rng.normal(size=classes), jnp.float32)
    human = rng.uniform(size=(batch, 16, 20)).astype(np.float32)
    other = np.random.default_rng(seed + 2).gamma(1.0, size=features.shape)
    mirrored = ModelOutput(jnp.zeros((batch, classes)), jnp.asarray(other, jnp.float32), kernel, bias)
    hooked = jnp.asarray(np.random.default_rng(seed + 1).normal(size=features.shape), jnp.float32)
    human[0] = 0
    return Evidence(
        output=ModelOutput(features.mean((1, 2)) @ kernel + bias[None], features, kernel, bias, hooked),
        labels=jnp.asarray(rng.integers(0, classes, batch)),
        mask=jnp.arange(batch) != 1,
        weight=jnp.ones(batch),
        human_maps=jnp.asarray(human),
        input_gradient=lambda: jnp.asarray(rng.normal(size=(batch, 16, 20, 3)), jnp.float32),
        mirrored=lambda: mirrored,
        progress=lambda: jnp.float32(progress),
    )


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("classes", [2, 4])
def test_terms_weigh_alpha_and_its_complement_and_leave_out_padding(name, classes):
    terms = make_strategy(name, alpha=0.3)(make_evidence(classes))
    assert {key: term.weight for key, term in terms.items()} == {"cross_entropy": 0.3, name: 0.7}
    guided = [name in WITHOUT_HUMAN_MAPS, False, True, True, True, True]
    np.testing.assert_array_equal(terms[name].mask, guided)
    np.testing.assert_array_equal(terms["cross_entropy"].mask, [True, False, True, True, True, True])
    assert all(np.isfinite(term.per_example).all() for term in terms.values())


@pytest.mark.parametrize("name", GUIDED)
def test_alpha_one_leaves_cross_entropy_alone(name):
    assert set(make_strategy(name, alpha=1.0)(make_evidence())) == {"cross_entropy"}


@pytest.mark.parametrize("name", sorted(set(GUIDED) - {"hard_negative", "outside", "input_gradient"}))
def test_constant_maps_do_not_count(name):
    evidence = make_evidence()
    zero = jnp.zeros_like(evidence.output.features)
    terms = make_strategy(name)(evidence._replace(output=evidence.output.replace(features=zero)))
    assert not terms[name].mask.any()


@pytest.mark.parametrize("name", [name for name in GUIDED if "cam_class" in strategy_options(name)])
def test_the_predicted_class_takes_the_place_of_the_label_in_guidance_alone(name):
    """T and U are those of the relabelled examples."""
    evidence = make_evidence(classes=3, batch=40)
    predicted = evidence.output.logits.argmax(-1)
    assert (predicted != evidence.labels).any(), "the test needs a wrong prediction"
    terms = make_strategy(name, cam_class="predicted")(evidence)
    reference = make_strategy(name)(evidence)
    relabelled = make_strategy(name)(evidence._replace(labels=predicted))
    np.testing.assert_array_equal(terms[name].per_example, relabelled[name].per_example)
    np.testing.assert_array_equal(terms["cross_entropy"].per_example, reference["cross_entropy"].per_example)
    assert ((terms[name].per_example != reference[name].per_example) <= (predicted != evidence.labels)).all()
    assert (terms[name].per_example != reference[name].per_example).any()


def test_cyborg_on_hooked_features_is_cyborg_on_them():
    evidence = make_evidence()
    terms = make_strategy("cyborg", cam_features="hooked")(evidence)
    replaced = evidence.output.replace(features=evidence.output.hooked)
    expected, pooled = (make_strategy("cyborg")(each) for each in (evidence._replace(output=replaced), evidence))
    jax.tree.map(np.testing.assert_array_equal, terms, expected)
    assert (terms["cyborg"].per_example != pooled["cyborg"].per_example).all()


@pytest.mark.parametrize("name", ["consistency", "place_and_consistency"])
def test_a_network_that_moves_along_with_the_image_is_consistent(name):
    """Features of the mirror image that are those of the image mirrored cost nothing; as they are, they do."""
    evidence = make_evidence()
    terms = lambda features: make_strategy(name)(
        evidence._replace(mirrored=lambda: evidence.output.replace(features=features))
    )[name]
    along, stays = terms(evidence.output.features[:, :, ::-1]), terms(evidence.output.features)
    cyborg = make_strategy("cyborg")(evidence)["cyborg"].per_example
    expected = {"consistency": 0, "place_and_consistency": cyborg / 2}[name]
    np.testing.assert_allclose(along.per_example, jnp.broadcast_to(expected, cyborg.shape), atol=1e-6)
    assert (stays.per_example > along.per_example + 1e-3).all()
    assert not terms(jnp.zeros_like(evidence.output.features)).mask.any()


def test_the_place_may_be_that_of_the_difference():
    evidence = make_evidence()
    terms = make_strategy("place_and_consistency", attribution="difference", divergence="l1")(evidence)
    parts = [make_strategy(name, divergence="l1")(evidence)[name] for name in ("difference", "consistency")]
    half = sum(part.per_example for part in parts) / 2
    np.testing.assert_allclose(terms["place_and_consistency"].per_example, half, rtol=1e-6)


def test_options_reach_the_loss():
    evidence = make_evidence()
    mse, other = make_strategy("difference")(evidence), make_strategy("difference", divergence="l1")(evidence)
    maps = cams.class_activation_maps(evidence.output.features, evidence.output.kernel)
    true_map, false_map = cams.split_true_false(maps, evidence.labels)
    human = jax.image.resize(evidence.human_maps, (6, 4, 5), "linear")
    expected = losses.difference_loss(true_map, false_map, cams.normalize(human), l1)
    np.testing.assert_allclose(other["difference"].per_example, expected, rtol=1e-5)
    assert (mse["difference"].per_example != other["difference"].per_example).all()
    on_true, on_difference = (make_strategy("energy", attribution=a)(evidence) for a in ("true", "difference"))
    assert (on_true["energy"].per_example != on_difference["energy"].per_example).any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("diference", {}, "Did you mean 'difference'"),
        ("contrast", {"divergence": "l1"}, "no option 'divergence'.*it has alpha"),
        ("cross_entropy", {"alpha": 0.5}, "no option 'alpha'"),
        ("difference", {"divergence": "kll"}, "Did you mean 'kl'"),
        ("cyborg", {"cam_class": "false"}, "cam_class is 'false'"),
        ("cyborg", {"cam_features": "hookd"}, "Did you mean 'hooked'"),
        ("opposed", {"cam_features": "hooked"}, "no option 'cam_features'"),
        ("energy", {"attribution": "diff"}, "attribution is 'diff'"),
        ("opposed", {"alpha": 1.5}, r"\[0, 1\]"),
        ("hard_negative", {"cam_class": "predicted"}, "no option 'cam_class'"),
        ("cyborg", {"weighting": "loss-share"}, "Did you mean 'loss_share'"),
        ("cyborg", {"weighting": "loss_share", "alpha": 0.5}, "alpha is 0.5 and weighting is 'loss_share'.*leave one"),
        ("cross_entropy", {"weighting": "loss_share"}, "no option 'weighting'"),
        ("cyborg", {"schedule": "linear"}, "Did you mean 'linear_down'"),
        (
            "cyborg",
            {"schedule": "early", "weighting": "loss_share"},
            "schedule is 'early' and weighting is 'loss_share'",
        ),
        ("cyborg", {"schedule_share": 0.5}, "schedule_share is 0.5 and schedule is 'fixed'"),
        ("cyborg", {"schedule": "early", "schedule_share": 0.0}, "above 0 and at most 1"),
        ("cross_entropy", {"schedule": "early"}, "no option 'schedule'"),
        ("cyborg", {"unmarked": "level", "unmarked_classes": (0,)}, "unmarked is 'level'"),
        ("cyborg", {"unmarked": "flat"}, r"unmarked_classes is \(\): give both"),
        ("cyborg", {"unmarked_classes": (0,)}, "unmarked is None and unmarked_classes is .*: give both"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(name, **options)


def test_unset_options_take_the_strategys_default():
    of_any = ["weighting", "schedule", "schedule_share", "unmarked", "unmarked_classes"]
    assert strategy_options("cyborg") == ["alpha", "divergence", "cam_class", "cam_features", *of_any]
    make_strategy("contrast", alpha=0.5, divergence=None, cam_class=None, weighting=None)
    evidence = make_evidence()
    own, fixed = (make_strategy("contrast", weighting=weighting)(evidence) for weighting in (None, "fixed"))
    assert {term.weight for term in [*own.values(), *fixed.values()]} == {0.5}


def shared(cross_entropy, guidance, guided=True):
    """Value and slopes of the loss of two terms that share, each of three examples with this mean."""

    def loss(means):
        examples = jnp.array([0.5, 1.0, 1.5])
        masks = {"cross_entropy": jnp.ones(3, bool), "cyborg": jnp.full(3, guided)}
        terms = {name: Term(None, means[name] * examples, mask) for name, mask in masks.items()}
        return reduce_terms(terms)[0]

    value, slopes = jax.value_and_grad(loss)({"cross_entropy": cross_entropy, "cyborg": guidance})
    return float(value), float(slopes["cross_entropy"]), float(slopes["cyborg"])


@pytest.mark.parametrize(("c", "g"), [(0.7, 0.1), (0.7, 0.4), (0.2, 0.2), (0.05, 0.9), (0.3, 0.0), (0.0, 0.3)])
def test_shared_losses_have_the_gradient_through_alpha(c, g):
    """The written-out derivatives of `(c^2 + g^2) / (c + g)`, which are not alpha and 1 - alpha."""
    alpha, square = c / (c + g), (c + g) ** 2
    slopes = (c * c + 2 * c * g - g * g) / square, (g * g + 2 * c * g - c * c) / square
    np.testing.assert_allclose(shared(c, g), (alpha * c + (1 - alpha) * g, *slopes), rtol=1e-5, atol=1e-6)
    assert (slopes[1] < 0) == (alpha > 0.5**0.5)


def test_shared_losses_without_a_map_or_without_a_loss():
    assert shared(0.7, 0.4, guided=False) == (pytest.approx(0.7), pytest.approx(1.0), 0.0)
    assert shared(0.0, 0.0) == (0.0, 0.0, 0.0)


def test_features_are_guided_without_the_head():
    """What both classes share: another kernel changes nothing, and no gradient goes to it."""
    evidence = make_evidence()
    activation = np.abs(evidence.output.features).mean(-1)
    human, _ = to_cam_resolution(evidence.human_maps, (4, 5))
    turned = evidence._replace(output=evidence.output.replace(kernel=-evidence.output.kernel))
    for name, expected in {
        "feature_energy": 1 - (human * activation).sum((1, 2)) / activation.sum((1, 2)),
        "feature_map": losses.cyborg_loss(jnp.asarray(activation), human, DIVERGENCES["pearson"]),
    }.items():
        options = {"divergence": "pearson"} if name == "feature_map" else {}
        terms, other = (make_strategy(name, **options)(each) for each in (evidence, turned))
        np.testing.assert_allclose(terms[name].per_example, expected, rtol=1e-5)
        np.testing.assert_array_equal(terms[name].per_example, other[name].per_example)


def test_features_of_many_labels_are_one_map_an_image():
    """Each label that has a human map asks for the same activation."""
    rng = np.random.default_rng(3)
    output = ModelOutput(*(jnp.asarray(rng.gamma(1.0, size=s), jnp.float32) for s in ((2, 3), (2, 4, 5, 7), (7, 3), 3)))
    human = jnp.asarray(rng.uniform(size=(2, 3, 16, 20)), jnp.float32).at[0, 1].set(0)
    evidence = make_evidence()._replace(
        output=MultiLabelOutput(output, cams.two_columns(output.logits[..., None])),
        labels=jnp.array([[1, 0, 1], [0, 1, 1]]),
        mask=jnp.ones((2, 3), bool),
        weight=jnp.ones((2, 3)),
        human_maps=human,
    )
    term = make_strategy("feature_energy")(evidence)["feature_energy"]
    np.testing.assert_array_equal(term.mask, [[True, False, True], [True] * 3])
    small, _ = to_cam_resolution(human, (4, 5))
    expected = losses.energy_loss(jnp.stack([cams.mean_activation(output.features)] * 3, 1), small)
    np.testing.assert_allclose(term.per_example, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "alphas"),
    [
        ({"schedule": "fixed"}, [0.3, 0.3, 0.3, 0.3]),
        ({"schedule": "linear_down"}, [0.3, 0.475, 0.65, 0.93]),
        ({"schedule": "linear_down", "schedule_share": 0.5}, [0.3, 0.65, 1, 1]),
        ({"schedule": "early"}, [0.3, 0.3, 1, 1]),
        ({"schedule": "early", "schedule_share": 0.9}, [0.3, 0.3, 0.3, 1]),
    ],
)
def test_a_schedule_takes_from_guidance_what_it_gives_to_cross_entropy(options, alphas):
    strategy = make_strategy("difference", alpha=0.3, **options)
    for progress, alpha in zip((0.0, 0.25, 0.5, 0.9), alphas, strict=True):
        terms = strategy(make_evidence(progress=progress))
        weights = {name: float(term.weight) for name, term in terms.items()}
        assert weights == {"cross_entropy": pytest.approx(alpha), "difference": pytest.approx(1 - alpha, abs=1e-6)}


def test_nothing_is_scheduled_where_there_is_no_guidance():
    terms = make_strategy("difference", alpha=1.0, schedule="early")(make_evidence()._replace(progress=None))
    assert {name: term.weight for name, term in terms.items()} == {"cross_entropy": 1.0}


@pytest.mark.parametrize("kind", UNMARKED)
def test_unmarked_images_are_those_of_their_classes_without_a_map(kind):
    """Row 0 has no map, 1 is padding, 2 has none and is of a class that was not named, 3's map says nothing."""
    evidence = make_evidence()
    human = evidence.human_maps.at[jnp.array([1, 2])].set(0).at[3].set(0.7)
    evidence = evidence._replace(labels=jnp.array([1, 1, 0, 1, 1, 0]), human_maps=human)
    plain = make_strategy("cyborg", alpha=0.3)(evidence)
    terms = make_strategy("cyborg", alpha=0.3, unmarked=kind, unmarked_classes=(1,))(evidence)
    assert list(terms) == ["cross_entropy", "cyborg", "unmarked"] and terms["unmarked"].weight == 0.7
    np.testing.assert_array_equal(terms["unmarked"].mask, [True, False, False, True, False, False])
    jax.tree.map(np.testing.assert_array_equal, plain, {name: terms[name] for name in plain})
    true_map, false_map = evidence.output.true_false_maps(evidence.labels)
    d = np.asarray(true_map - false_map)
    peak = np.abs(d).max((1, 2))
    expected = d.var((1, 2)) / peak**2 if kind == "flat" else np.maximum(-d, 0).mean((1, 2)) / peak
    np.testing.assert_allclose(terms["unmarked"].per_example, expected, rtol=1e-5)
    assert not (np.asarray(terms["unmarked"].mask) & np.asarray(terms["cyborg"].mask)).any()


def test_unmarked_images_weigh_as_guidance_does():
    """With a schedule, by loss share, for several classes, and not at all where there is no guidance."""
    options = {"unmarked": "flat", "unmarked_classes": (0, 1)}
    scheduled = make_strategy("cyborg", alpha=0.5, schedule="linear_down", **options)(make_evidence(progress=0.5))
    assert float(scheduled["unmarked"].weight) == float(scheduled["cyborg"].weight) == 0.25
    shared = make_strategy("cyborg", weighting="loss_share", **options)(make_evidence())
    assert shared["unmarked"].weight is None and shared["unmarked"].mask.tolist() == [True] + [False] * 5
    assert set(make_strategy("cyborg", alpha=1.0, **options)(make_evidence())) == {"cross_entropy"}


def test_reduction_divides_by_the_examples_that_count():
    losses_, mask = jnp.array([1.0, jnp.nan, 4.0, 100.0]), jnp.array([True, False, True, False])
    share, totals = reduce_terms({"a": Term(0.5, losses_, mask), "b": Term(2.0, losses_, jnp.zeros(4, bool))})
    assert share == 0.5 * (1 + 4) / 2
    assert (totals["a"].sum, totals["a"].count) == (5, 2)
    assert (totals["b"].sum, totals["b"].count) == (0, 0)
