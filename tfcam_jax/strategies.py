"""Training strategies: which terms enter the loss, with which weight and for which examples.

    total = alpha * cross-entropy + (1 - alpha) * guidance

with an alpha that is given, that each step finds (`WEIGHTINGS`), or that rises over training (`GUIDANCE_SCHEDULES`).

A new strategy is one function here, one line in `STRATEGIES` and a config. `opposed`, `difference` and `contrast`
are reconstructions from the abstract of arXiv 2507.17000, those in `OWN` are this project's own; see
`tfcam_jax.losses`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from . import cams, losses, saliency
from .divergences import DIVERGENCES, mse
from .errors import ConfigError, check_known
from .losses import Divergence
from .terms import Evidence, Strategy, Term, Terms

CAM_CLASSES = ("true", "predicted")
CAM_FEATURES = ("pooled", "hooked")
ATTRIBUTIONS = ("true", "difference")
# What alpha is. fixed: a number. loss_share: cross-entropy / (cross-entropy + guidance), of each batch's means.
WEIGHTINGS = ("fixed", "loss_share")
# What becomes of guidance's weight, 1 - alpha, over training, and the share of training after which it is 0. fixed: it
# stays. linear_down: it falls to 0 in a line. early: it stays until then.
GUIDANCE_SCHEDULES = {"fixed": None, "linear_down": 1.0, "early": 0.5}
# What is asked of D = T - U on images of chosen classes without a human map. flat: that it is the same everywhere.
# positive: that no place speaks against the label.
UNMARKED = ("flat", "positive")


class View(NamedTuple):
    """The maps of a batch at the CAM's resolution; `usable` marks human maps that say something.

    `true_map` is T and `false_map` U for the labels, or for the predicted classes in their place (`guided`'s
    `cam_class`), `labels` here. Leading dimensions are [batch], or [batch, labels] where each image has many
    (`models.tasks.MultiLabel`).
    """

    true_map: Float[Array, "*batch h w"]
    false_map: Float[Array, "*batch h w"]
    saliency: Float[Array, "*batch h w"]
    usable: Bool[Array, "*batch"]
    labels: Int[Array, "*batch"]


Guidance = Callable[[View], tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]]


def cross_entropy(evidence: Evidence) -> Terms:
    """The baseline: cross-entropy alone, each example by its weight; no CAM work."""
    per_example = optax.softmax_cross_entropy_with_integer_labels(evidence.output.logits, evidence.labels)
    return {"cross_entropy": Term(1.0, evidence.weight * per_example, evidence.mask)}


def guided(
    evidence: Evidence,
    alpha: float,
    name: str,
    guidance: Guidance,
    cam_class: str = "true",
    cam_features: Array | None = None,
) -> Terms:
    """Cross-entropy and one guidance term: what most strategies consist of, and a new one can start from.

    Args:
      evidence: of the batch.
      alpha: total = alpha * cross-entropy + (1 - alpha) * guidance; at 1 the guidance is not even traced.
      name: of the guidance term, in metrics.
      guidance: from the maps to one value per example, and which examples it holds for.
      cam_class: the class whose map is T, U being the other classes': "true", the label, or "predicted", the largest
        logit, as in the code of CYBORG and VISER. They differ for images that are classified wrongly: there "predicted"
        asks for evidence of the wrong class where people looked (of two classes D changes its sign), and cross-entropy
        alone speaks for the label.
      cam_features: [batch, h, w, channels], what the maps are made of; None: the features that are pooled.
    """
    check_known("cam_class", cam_class, CAM_CLASSES)
    terms = {"cross_entropy": cross_entropy(evidence)["cross_entropy"]._replace(weight=alpha)}
    if alpha < 1:
        labels = evidence.labels if cam_class == "true" else evidence.output.logits.argmax(-1)
        per_example, usable = guidance(_view(evidence, labels, cam_features))
        terms[name] = Term(1 - alpha, per_example, evidence.mask & usable)
    return terms


def cyborg(
    evidence: Evidence,
    *,
    alpha: float = 0.5,
    divergence: Divergence = mse,
    cam_class: str = "true",
    cam_features: str = "pooled",
) -> Terms:
    """True-class map like the human's.

    The CYBORG code (Boyd et al., WACV 2023) takes the map of the predicted class, `cam_class="predicted"`, on a tensor
    that is not the pooled one, `cam_features="hooked"`: the means of such maps are not the logits. Only the guidance
    sees it; evaluation keeps to the pooled tensor.
    """
    check_known("cam_features", cam_features, CAM_FEATURES)
    features = None if cam_features == "pooled" else evidence.output.hooked
    if cam_features == "hooked" and features is None:
        raise ConfigError("cam_features=hooked: this network has no such tensor; leave it unset (pooled)")
    guidance = lambda view: _placed(view, "true", divergence)
    return guided(evidence, alpha, "cyborg", guidance, cam_class, features)


def opposed(evidence: Evidence, *, alpha: float = 0.5, divergence: Divergence = mse, cam_class: str = "true") -> Terms:
    """True-class map like the human's, false-class map like its complement (reconstruction 1)."""
    loss = lambda view: losses.opposed_loss(view.true_map, view.false_map, view.saliency, divergence)
    guidance = lambda view: (loss(view), view.usable & _vary(view.true_map, view.false_map))
    return guided(evidence, alpha, "opposed", guidance, cam_class)


def difference(
    evidence: Evidence, *, alpha: float = 0.5, divergence: Divergence = mse, cam_class: str = "true"
) -> Terms:
    """Difference of the raw maps like the human's map (reconstruction 2)."""
    guidance = lambda view: _placed(view, "difference", divergence)
    return guided(evidence, alpha, "difference", guidance, cam_class)


def contrast(evidence: Evidence, *, alpha: float = 0.5, cam_class: str = "true") -> Terms:
    """Maps that diverge where people looked and agree elsewhere (reconstruction 3)."""
    loss = lambda view: losses.contrast_loss(view.true_map, view.false_map, view.saliency)
    guidance = lambda view: (loss(view), view.usable & _vary(view.true_map, view.false_map))
    return guided(evidence, alpha, "contrast", guidance, cam_class)


def energy(evidence: Evidence, *, alpha: float = 0.5, attribution: str = "true", cam_class: str = "true") -> Terms:
    """Positive attribution inside the human map (Rao et al., ICCV 2023), on T or on D."""

    def guidance(view: View):
        maps = _attribution(view, attribution)
        return losses.energy_loss(maps, view.saliency), view.usable & (maps > 0).any((-2, -1))

    return guided(evidence, alpha, "energy", guidance, cam_class)


def outside(evidence: Evidence, *, alpha: float = 0.5, attribution: str = "true", cam_class: str = "true") -> Terms:
    """No attribution outside the human map (RRR* in Rao et al., ICCV 2023), on T or on D."""
    guidance = lambda view: (losses.outside_loss(_attribution(view, attribution), view.saliency), view.usable)
    return guided(evidence, alpha, "outside", guidance, cam_class)


def entropy(evidence: Evidence, *, alpha: float = 0.5, cam_class: str = "true") -> Terms:
    """Low entropy of the true-class map (Piland et al., arXiv 2303.00818). Uses no human map."""
    guidance = lambda view: (losses.entropy_loss(view.true_map), _vary(view.true_map))
    return guided(evidence, alpha, "entropy", guidance, cam_class)


def hard_negative(evidence: Evidence, *, alpha: float = 0.5) -> Terms:
    """False-class map pushed to zero (after Sun et al., ECCV 2020). Uses no human map."""
    every = jnp.ones_like(evidence.mask)
    return guided(evidence, alpha, "hard_negative", lambda view: (losses.hard_negative_loss(view.false_map), every))


def input_gradient(evidence: Evidence, *, alpha: float = 0.5) -> Terms:
    """Right for the right reasons: no input gradient outside the human map (Ross et al., IJCAI 2017)."""
    if evidence.labels.ndim > 1:
        raise ConfigError(
            "strategy input_gradient takes one decision an image; of many labels each has its own gradient"
        )

    def guidance(view: View):
        image_saliency, usable = saliency.to_cam_resolution(evidence.human_maps, evidence.human_maps.shape[-2:])
        return losses.input_gradient_loss(evidence.input_gradient(), image_saliency), usable

    return guided(evidence, alpha, "input_gradient", guidance)


def unsigned_energy(evidence: Evidence, *, alpha: float = 0.5, cam_class: str = "true") -> Terms:
    """Where both maps differ, whichever is higher, inside the human map (own). See `losses.unsigned_energy_loss`."""

    def guidance(view: View):
        loss = losses.unsigned_energy_loss(view.true_map, view.false_map, view.saliency)
        maps = cams.difference_salience(view.true_map, view.false_map)
        magnitude = cams.largest_magnitude(view.true_map, view.false_map)
        return loss, view.usable & ~cams.is_rounding(maps, magnitude)

    return guided(evidence, alpha, "unsigned_energy", guidance, cam_class)


def feature_energy(evidence: Evidence, *, alpha: float = 0.5) -> Terms:
    """What the features are active at inside the human map, whatever class they speak for (own).

    `losses.energy_loss` of `cams.mean_activation`: guidance through what both classes share, not through the head. Of
    many labels of an image all have that one map, and each that has a human map asks for it.
    """

    def guidance(view: View):
        activation = _activation(evidence, view)
        return losses.energy_loss(activation, view.saliency), view.usable & (activation > 0).any((-2, -1))

    return guided(evidence, alpha, "feature_energy", guidance)


def feature_map(evidence: Evidence, *, alpha: float = 0.5, divergence: Divergence = mse) -> Terms:
    """The features' mean activation like the human's map (own): `cyborg` without the head, see `feature_energy`."""

    def guidance(view: View):
        activation = _activation(evidence, view)
        return losses.cyborg_loss(activation, view.saliency, divergence), view.usable & _vary(activation)

    return guided(evidence, alpha, "feature_map", guidance)


def aligned(evidence: Evidence, *, alpha: float = 0.5, divergence: Divergence = mse, cam_class: str = "true") -> Terms:
    """Both maps like the human's (own): a control of `opposed`, against the paper's hypothesis."""
    loss = lambda view: losses.aligned_loss(view.true_map, view.false_map, view.saliency, divergence)
    guidance = lambda view: (loss(view), view.usable & _vary(view.true_map, view.false_map))
    return guided(evidence, alpha, "aligned", guidance, cam_class)


def place_and_sign(
    evidence: Evidence, *, alpha: float = 0.5, divergence: Divergence = mse, cam_class: str = "true"
) -> Terms:
    """True-class map like the human's, and no evidence against the label inside it (own)."""
    loss = lambda view: losses.place_and_sign_loss(view.true_map, view.false_map, view.saliency, divergence)
    guidance = lambda view: (loss(view), view.usable & _vary(view.true_map))
    return guided(evidence, alpha, "place_and_sign", guidance, cam_class)


def order(evidence: Evidence, *, alpha: float = 0.5, attribution: str = "difference", cam_class: str = "true") -> Terms:
    """Places inside the human map above places outside, on T or on D; nothing is asked of the shape (own)."""

    def guidance(view: View):
        loss = losses.order_loss(_attribution(view, attribution), view.saliency)
        return loss, view.usable & _attribution_varies(view, attribution)

    return guided(evidence, alpha, "order", guidance, cam_class)


def consistency(
    evidence: Evidence, *, alpha: float = 0.5, divergence: Divergence = mse, cam_class: str = "true"
) -> Terms:
    """D of an image like D of its mirror image (own). Uses no human map; asks for a second pass through the model.

    For data whose classes don't change in a mirror.
    """
    guidance = lambda view: _consistency(evidence, view, divergence)
    return guided(evidence, alpha, "consistency", guidance, cam_class)


def place_and_consistency(
    evidence: Evidence,
    *,
    alpha: float = 0.5,
    divergence: Divergence = mse,
    attribution: str = "true",
    cam_class: str = "true",
) -> Terms:
    """T like the human's map, or D, and D consistent in the mirror: half `cyborg` or `difference`, half `consistency`.

    Own. For the images that have a human map.
    """

    def guidance(view: View):
        place, usable = _placed(view, attribution, divergence)
        alike, consistent = _consistency(evidence, view, divergence)
        return 0.5 * place + 0.5 * alike, usable & consistent

    return guided(evidence, alpha, "place_and_consistency", guidance, cam_class)


def sham(evidence: Evidence, *, alpha: float = 0.5, divergence: Divergence = mse, cam_class: str = "true") -> Terms:
    """Adversarial control: `cyborg` towards the border ring, on the same examples that `cyborg` would use."""
    guidance = lambda view: (losses.sham_loss(view.true_map, divergence), view.usable & _vary(view.true_map))
    return guided(evidence, alpha, "sham", guidance, cam_class)


STRATEGIES: dict[str, Callable[..., Terms]] = {
    "cross_entropy": cross_entropy,
    "cyborg": cyborg,
    "opposed": opposed,
    "difference": difference,
    "contrast": contrast,
    "energy": energy,
    "outside": outside,
    "entropy": entropy,
    "hard_negative": hard_negative,
    "input_gradient": input_gradient,
    "unsigned_energy": unsigned_energy,
    "feature_energy": feature_energy,
    "feature_map": feature_map,
    "aligned": aligned,
    "place_and_sign": place_and_sign,
    "order": order,
    "consistency": consistency,
    "place_and_consistency": place_and_consistency,
    "sham": sham,
}

# They take the gradient by the image, and human maps of the image's size; all others get maps at the CAM's places. One
# of your own that does so adds its name here too.
ON_IMAGES = {"input_gradient"}

# They look at each image's mirror image too. Where images are kept as features of a frozen part, batches bring those of
# the mirror image for these alone; one of your own that asks for `evidence.mirrored()` adds its name here too.
ON_MIRRORED = {"consistency", "place_and_consistency"}

# They stand for the paper's methods, of which no equation could be read.
RECONSTRUCTIONS = ("opposed", "difference", "contrast")

# Neither the paper's nor of the literature: made here, to find out why guidance helps.
OWN = ("unsigned_energy", "feature_energy", "feature_map", "aligned", "place_and_sign", "order")
OWN += ("consistency", "place_and_consistency")

# These need no second place in a map: the size of U alone counts, or the gradient by the image's own pixels.
_ON_ONE_PLACE = frozenset({"cross_entropy", "hard_negative", "input_gradient"})


# What every strategy takes that has guidance.
_OF_GUIDANCE = ("weighting", "schedule", "schedule_share", "unmarked", "unmarked_classes")

# No human map enters the guidance of these.
_WITHOUT_HUMAN_MAPS = frozenset({"cross_entropy", "entropy", "hard_negative", "consistency", "sham"})


def strategy_options(name: str) -> list[str]:
    """Names of the options that `make_strategy` takes for a strategy of the table.

    Its own, and where it weighs guidance at all those of every such strategy.
    """
    check_known("strategy", name, STRATEGIES)
    parameters = inspect.signature(STRATEGIES[name]).parameters.values()
    own = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return [*own, *_OF_GUIDANCE] if "alpha" in own else own


def alpha_of(name: str, alpha: float | None, weighting: str | None) -> float | None:
    """The number that weighs cross-entropy in a strategy with these options, None being its default.

    None where there is no such number: nothing else is in the loss, as in `cross_entropy`, or each step finds its own.
    With a schedule it is the number that training begins with.
    """
    if "alpha" not in strategy_options(name) or weighting == "loss_share":
        return None
    return inspect.signature(STRATEGIES[name]).parameters["alpha"].default if alpha is None else alpha


def reads_human_maps(name: str, alpha: float | None = None) -> bool:
    """Whether human maps enter the loss of a strategy of the table, with this weight of cross-entropy."""
    return name not in _WITHOUT_HUMAN_MAPS and alpha != 1


def reads_images(name: str, alpha: float | None = None) -> bool:
    """Whether the loss of a strategy of the table asks for the gradient by the image (`ON_IMAGES`), with this alpha."""
    return name in ON_IMAGES and alpha != 1


def reads_mirrored(name: str, alpha: float | None = None) -> bool:
    """Whether a strategy of the table looks at mirror images too (`ON_MIRRORED`), with this alpha."""
    return name in ON_MIRRORED and alpha != 1


def check_places(name: str, alpha: float | None, places: int) -> None:
    """Raises ConfigError for a CAM of one place where a strategy compares places: no example would be guided."""
    if places == 1 and name not in _ON_ONE_PLACE and alpha != 1:
        raise ConfigError(
            f"strategy {name!r} compares the places of a CAM, and here it has one: guidance would be void."
        )


def make_strategy(name: str, **options: Any) -> Strategy:
    """Binds a strategy of the table to its options.

    Args:
      name: key of `STRATEGIES`.
      **options: keyword arguments of the strategy; None means its own default. `divergence` is a key of `DIVERGENCES`.
        `weighting` is one of `WEIGHTINGS`, by default "fixed", see `share_losses` for the other. `schedule` is one of
        `GUIDANCE_SCHEDULES`, by default "fixed", and `schedule_share` how long it lasts, see `schedule_guidance`.
        `unmarked` is one of `UNMARKED`, by default none, for the classes of the indices `unmarked_classes`, see
        `guide_unmarked`.

    Raises:
      ConfigError: an unknown name or value, or an option that this strategy does not have (it would do nothing).
    """
    accepted = strategy_options(name)
    chosen = {key: value for key, value in options.items() if value is not None}
    for key in chosen:
        if key not in accepted:
            raise ConfigError(
                f"strategy {name!r} has no option {key!r} (set to {chosen[key]!r}); "
                f"it has {', '.join(accepted) or 'none'}. Leave {key!r} unset."
            )
    if not 0 <= chosen.get("alpha", 0.5) <= 1:
        raise ConfigError(f"alpha weighs cross-entropy against guidance and lies in [0, 1]; got {chosen['alpha']}")
    named = {"divergence": DIVERGENCES, "attribution": ATTRIBUTIONS, "weighting": WEIGHTINGS}
    named |= {"cam_class": CAM_CLASSES, "cam_features": CAM_FEATURES}
    named |= {"schedule": GUIDANCE_SCHEDULES, "unmarked": UNMARKED}
    for key, values in named.items():
        if key in chosen:
            check_known(key, chosen[key], values)
    if "divergence" in chosen:
        chosen["divergence"] = DIVERGENCES[chosen["divergence"]]
    weighting, schedule = chosen.pop("weighting", "fixed"), chosen.pop("schedule", "fixed")
    lasts, unmarked = chosen.pop("schedule_share", None), chosen.pop("unmarked", None)
    classes = tuple(chosen.pop("unmarked_classes", ()))
    _check_together(weighting, schedule, lasts, unmarked, classes, chosen.get("alpha"))
    strategy = functools.partial(STRATEGIES[name], **chosen)
    strategy = share_losses(strategy) if weighting == "loss_share" else strategy
    strategy = schedule_guidance(strategy, schedule, lasts) if schedule != "fixed" else strategy
    return guide_unmarked(strategy, unmarked, classes) if unmarked else strategy


def _check_together(
    weighting: str,
    schedule: str,
    lasts: float | None,
    unmarked: str | None,
    classes: Sequence[Any],
    alpha: float | None,
) -> None:
    """Raises ConfigError for options of guidance that contradict each other, or of which one does nothing."""
    if weighting == "loss_share" and (alpha is not None or schedule != "fixed"):
        other = f"alpha is {alpha}" if alpha is not None else f"schedule is {schedule!r}"
        raise ConfigError(
            f"{other} and weighting is 'loss_share', by which each step finds its own alpha, "
            "cross-entropy / (cross-entropy + guidance): leave one unset."
        )
    if lasts is not None and (schedule == "fixed" or not 0 < lasts <= 1):
        wanted = "the share of training, above 0 and at most 1, after which a schedule of guidance has ended"
        raise ConfigError(f"schedule_share is {lasts} and schedule is {schedule!r}: it is {wanted}.")
    if bool(unmarked) != bool(classes):
        raise ConfigError(
            f"unmarked is {unmarked!r} and unmarked_classes is {classes!r}: give both, what D is to be where there is "
            "no human map, and of which classes, or neither."
        )


def schedule_guidance(strategy: Strategy, schedule: str, lasts: float | None = None) -> Strategy:
    """The strategy with its guidance weighed down over training: alpha rises to 1, after which cross-entropy is alone.

    What the strategy weighs with `w` gets `w f`, and cross-entropy, of weight `alpha`, `1 - (1 - alpha) f`, so that
    they add up to what they did. f is `remaining_guidance` of the step, so that nothing is compiled anew, and a run
    that goes on from a checkpoint has the same.
    """
    return functools.partial(_schedule_guidance, strategy, schedule, lasts)


def remaining_guidance(schedule: str, lasts: float | None, progress: Any) -> Any:
    """The factor in [0, 1] of guidance's weight when the share `progress` of training is done; arrays or floats.

    `lasts` is the share of training after which it is 0; None: the default of `GUIDANCE_SCHEDULES`.
    """
    lasts = GUIDANCE_SCHEDULES[schedule] if lasts is None else lasts
    if lasts is None:  # fixed
        return 1.0
    return (progress < lasts) * (1 - progress / lasts if schedule == "linear_down" else 1.0)


def _schedule_guidance(strategy: Strategy, schedule: str, lasts: float | None, evidence: Evidence) -> Terms:
    terms = strategy(evidence)
    if len(terms) == 1:  # nothing but cross-entropy
        return terms
    factor = remaining_guidance(schedule, lasts, evidence.progress())
    rescaled = lambda name, weight: 1 - (1 - weight) * factor if name == "cross_entropy" else weight * factor
    return {name: term._replace(weight=rescaled(name, term.weight)) for name, term in terms.items()}


def guide_unmarked(strategy: Strategy, kind: str, classes: Sequence[int]) -> Strategy:
    """The strategy with a term more, `unmarked`, for images on which nobody has anything to mark, as normal ones.

    It takes the examples of `classes`, indices, that have no usable human map, and no others: one of another class
    without a map is one that nobody annotated. It weighs as guidance does; the two are means over different examples.

    Args:
      strategy: any with guidance.
      kind: "flat" asks that D = T - U is the same everywhere (`losses.uneven_loss`), "positive" that no place speaks
        against the label (`losses.against_loss`, on all places).
      classes: of the labels.
    """
    return functools.partial(_guide_unmarked, strategy, kind, tuple(classes))


def _guide_unmarked(strategy: Strategy, kind: str, classes: tuple[int, ...], evidence: Evidence) -> Terms:
    terms = strategy(evidence)
    if len(terms) == 1:
        return terms
    weight = next(term.weight for name, term in terms.items() if name != "cross_entropy")
    view = _view(evidence, evidence.labels, None)
    if kind == "flat":
        per_example = losses.uneven_loss(view.true_map, view.false_map)
    else:
        per_example = losses.against_loss(view.true_map, view.false_map, jnp.ones_like(view.saliency))
    chosen = functools.reduce(jnp.logical_or, [evidence.labels == index for index in classes])
    return {**terms, "unmarked": Term(weight, per_example, evidence.mask & chosen & ~view.usable)}


def share_losses(strategy: Strategy) -> Strategy:
    """The strategy with each term weighed by its share of their sum, found anew from the means of every batch.

    With cross-entropy C and guidance G, means over the whole batch, alpha = C / (C + G). The gradient goes through
    alpha, as in the public code of VISER (Dowling, Piland, Frederick, Sweet, Czajka, IJCB 2026, arXiv 2603.17859):

        total = alpha C + (1 - alpha) G = (C^2 + G^2) / (C + G)

    So a step does not follow `alpha grad C + (1 - alpha) grad G`. The slope by G is `(G^2 + 2 C G - C^2) / (C + G)^2`,
    **negative while G < (sqrt(2) - 1) C**, where alpha > 0.707: the step then moves the maps away from the human ones.
    Likewise cross-entropy is pushed up while C < 0.414 G, where alpha < 0.293. The larger of the two terms is always
    pulled down. 0, with gradient 0, where both are 0 (that code adds 1e-8 to the divisor). A batch without a usable
    human map has G = 0 and alpha = 1: plain cross-entropy, of weight 1, where a fixed alpha leaves alpha times it.
    """
    return functools.partial(_share_losses, strategy)


def _share_losses(strategy: Strategy, evidence: Evidence) -> Terms:
    return {name: term._replace(weight=None) for name, term in strategy(evidence).items()}


def _view(evidence: Evidence, labels: Array, features: Array | None) -> View:
    """Computes the maps; what a strategy does not use is removed by the compiler.

    Raises ValueError for human maps that are not one for each image, or one for each of its labels.
    """
    true_map, false_map = evidence.output.true_false_maps(labels, features)
    if evidence.human_maps.shape[:-2] not in (labels.shape, labels.shape[:1]):
        wanted = f"labels of shape {labels.shape} need human maps [{', '.join(map(str, labels.shape[:1]))}, H, W]"
        raise ValueError(f"{wanted}; got {evidence.human_maps.shape}")
    human, usable = saliency.to_cam_resolution(evidence.human_maps, true_map.shape[-2:])
    if human.ndim < true_map.ndim:  # one human map for all labels of an image
        human, usable = (jnp.expand_dims(each, 1) for each in (human, usable))
    human, usable = jnp.broadcast_to(human, true_map.shape), jnp.broadcast_to(usable, true_map.shape[:-2])
    return View(true_map, false_map, human, usable, labels)


def _vary(*maps: Array) -> Array:
    """Where all of these maps say something."""
    return ~functools.reduce(jnp.logical_or, map(cams.is_constant, maps))


def _differ(true_map: Array, false_map: Array) -> Array:
    """Where D says something."""
    maps, magnitude = cams.difference_salience(true_map, false_map), cams.largest_magnitude(true_map, false_map)
    return ~cams.is_constant(maps, magnitude)


def _attribution_varies(view: View, attribution: str) -> Array:
    """Where T or D says something."""
    check_known("attribution", attribution, ATTRIBUTIONS)
    return _vary(view.true_map) if attribution == "true" else _differ(view.true_map, view.false_map)


def _placed(view: View, attribution: str, divergence: Divergence) -> tuple[Array, Array]:
    """The loss of T or of D that is to be like the human's map, and which examples it holds for."""
    usable = view.usable & _attribution_varies(view, attribution)
    if attribution == "true":
        return losses.cyborg_loss(view.true_map, view.saliency, divergence), usable
    return losses.difference_loss(view.true_map, view.false_map, view.saliency, divergence), usable


def _consistency(evidence: Evidence, view: View, divergence: Divergence) -> tuple[Array, Array]:
    """The loss of D in both views, and where both D say something."""
    maps = view.true_map, view.false_map
    other_true, other_false = (jnp.flip(each, -1) for each in evidence.mirrored().true_false_maps(view.labels))
    usable = _differ(*maps) & _differ(other_true, other_false)
    return losses.consistency_loss(*maps, other_true, other_false, divergence), usable


def _activation(evidence: Evidence, view: View) -> Array:
    """The features' own map, one an image, for each of its labels."""
    activation = cams.mean_activation(evidence.output.features)
    if activation.ndim < view.saliency.ndim:
        activation = jnp.expand_dims(activation, 1)
    return jnp.broadcast_to(activation, view.saliency.shape)


def _attribution(view: View, attribution: str) -> Array:
    check_known("attribution", attribution, ATTRIBUTIONS)
    if attribution == "true":
        return view.true_map
    return cams.difference_salience(view.true_map, view.false_map)
