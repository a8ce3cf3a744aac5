"""The model card: what stands in a published folder's README.md, with the Hub's metadata at its head."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from ..evaluation import tabulate_results
from ..inference import Trained
from ..metrics.protocol_tables import explain_star, tabulate_maps, tabulate_sets
from ..metrics.tables import Table, columns, tabulate
from ..report.page import template
from ..strategies import OWN, RECONSTRUCTIONS

_DIVISIVE = "Piland, Sweet, Czajka: Divisive Decisions, arXiv 2507.17000"
# Of every strategy, what was trained and whose idea it is.
_STRATEGIES = {
    "cross_entropy": ("cross-entropy alone, no maps guided it.", ""),
    "cyborg": (
        "cross-entropy, and the true class's map like the human's.",
        "Boyd, Tinsley, Bowyer, Czajka: CYBORG, WACV 2023, arXiv 2112.00686",
    ),
    "opposed": ("the true class's map like the human's, the false class's like its complement.", _DIVISIVE),
    "difference": ("the difference of both maps, which is the decision's own, like the human's.", _DIVISIVE),
    "contrast": ("maps of both classes that diverge where people looked and agree elsewhere.", _DIVISIVE),
    "energy": ("positive evidence inside the human map.", "Rao et al., ICCV 2023"),
    "outside": ("no evidence outside the human map.", "Rao et al., ICCV 2023"),
    "input_gradient": ("no gradient with respect to the image outside the human map.", "Ross et al., IJCAI 2017"),
    "entropy": ("concentrated maps of the true class.", "Piland et al., arXiv 2303.00818"),
    "hard_negative": ("small maps of the false class.", "after Sun et al., ECCV 2020"),
    "unsigned_energy": ("the two maps apart inside the human map, whichever is higher.", ""),
    "feature_energy": ("features active inside the human map.", ""),
    "feature_map": ("the features' mean activation like the human's map.", ""),
    "aligned": ("the maps of both classes like the human's.", ""),
    "place_and_sign": ("the true class's map like the human's, and no evidence against the label there.", ""),
    "order": ("more evidence inside the human map than outside, whatever its shape.", ""),
    "consistency": ("the difference of both maps alike in an image and its mirror image; no maps guided it.", ""),
    "place_and_consistency": ("a map like the human's, and the difference of both alike in the mirror image.", ""),
    "sham": ("an adversarial control: maps like a ring at the border.", ""),
}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a card tells of a run.

    Attributes:
      repository: "owner/name".
      license: the Hub's identifier of one; None: none was given.
      data: as in the record: `source`, `name`, and `splits` (`describe_split` of each; None where nobody knows them).
      evaluation, results: as `evaluation.evaluate` and `evaluate_best` give them, without paths; None: not there.
      provenance: see `privacy.public_provenance`.
      pictures: file name to what it shows.
    """

    trained: Trained
    config: Mapping[str, Any]
    repository: str
    license: str | None
    data: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    results: dict[str, Any] | None
    provenance: Mapping[str, Any]
    pictures: Mapping[str, str]


_IMPORTED = "trained elsewhere and imported into tfcam_jax as it was."


def _about_strategy(name: str, about: str) -> str:
    kind = " (a reconstruction)" if name in RECONSTRUCTIONS else " (this project's own)" if name in OWN else ""
    return f"trained with tfcam_jax: strategy `{name}`{kind}, {about}"


def write_card(contents: Contents) -> str:
    """The card as Markdown, its YAML front matter first."""
    trained, evaluation, results = contents.trained, contents.evaluation, contents.results
    name = trained.recipe.strategy_name
    about, origin = _STRATEGIES[name]
    splits = tabulate("Splits", "split", (contents.data["splits"] or {}).items(), _of_splits(trained.class_names))
    return template("model_card.md", "tfcam_jax.sharing").render(
        metadata=_metadata(contents).to_yaml().strip(),
        repository=contents.repository,
        license=contents.license,
        classes=trained.class_names,
        about_strategy=_about_strategy(name, about) if trained.recipe.epochs else _IMPORTED,
        facts=list(_facts(contents)),
        data=contents.data,
        protocol=contents.config["data"]["protocol"]["name"],
        splits=_markdown(splits),
        evaluation=evaluation,
        set_names=list((evaluation or results or {"sets": {}})["sets"]),
        sets=_figures(contents),
        star=explain_star(evaluation) if evaluation else "",
        maps=_markdown(tabulate_maps(evaluation["map_agreement"])) if evaluation else "",
        pictures=contents.pictures,
        reconstruction=name in RECONSTRUCTIONS,
        trained=_origin(contents),
        citation="\n".join(f"- {each}." for each in [origin] if each),
    )


def _metadata(contents: Contents) -> ModelCardData:
    results = list(_eval_results(contents))
    return ModelCardData(
        license=contents.license,
        library_name="tfcam_jax",
        pipeline_tag="image-classification",
        tags=["jax", "flax", "class-activation-maps", "human-saliency", contents.trained.recipe.strategy_name],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=contents.repository.partition("/")[2],
        eval_results=results or None,
    )


def _eval_results(contents: Contents) -> Iterator[EvalResult]:
    """AUROC and accuracy of each set, as the Hub lists them."""
    found, data = contents.evaluation or contents.results or {"sets": {}}, contents.data["name"]
    data = contents.evaluation["data"] if contents.evaluation else data
    for name, own in found["sets"].items():
        margin = own.get("scores", {}).get("margin", {})
        values = {"roc_auc": own.get("auroc", margin.get("auroc")), "accuracy": own.get("accuracy")}
        for metric, value in values.items():
            if value is not None:
                yield EvalResult(
                    task_type="image-classification",
                    dataset_type=re.sub(r"[^\w.-]+", "-", str(data)),
                    dataset_name=f"{data}, {name}",
                    dataset_config=name,  # the Hub's library joins those that differ in their names alone
                    metric_type=metric,
                    metric_name={"roc_auc": "AUROC", "accuracy": "Accuracy"}[metric],
                    metric_value=round(value, 4),
                )


def _facts(contents: Contents) -> Iterator[tuple[str, str]]:
    trained, config = contents.trained, contents.config
    recipe, model = trained.recipe, config["model"]
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained.state.params))
    yield "network", f"{recipe.model_name}, {parameters:,} parameters, from {model['weights'] or 'scratch'}"
    yield (
        "input",
        f"{recipe.image_size} x {recipe.image_size} px, {_colours(recipe.data.channels)}, squeezed to a square",
    )
    mean, std = (recipe.preprocess.keywords[name] for name in ("mean", "std"))
    yield "standardised by", f"mean {mean}, deviation {std}, of values in [0, 1]"
    yield "maps", f"{recipe.cam_side} x {recipe.cam_side} places"
    if not recipe.epochs:
        yield "training", "none here: the network was trained elsewhere and imported as it is"
        return
    weight = "" if recipe.alpha is None else f", alpha {recipe.alpha:g} (the weight of cross-entropy)"
    guidance = {key: value for key, value in config["guidance"].items() if value is not None and key != "alpha"}
    yield "strategy", f"{recipe.strategy_name}{weight}{_options(guidance)}"
    if recipe.data.placebo != "none":
        yield "human maps", f"a control: {recipe.data.placebo} in place of the true ones"
    optimizer = config["optimizer"]
    yield (
        "optimiser",
        f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g}, {optimizer['schedule']} schedule",
    )
    yield "training", f"{recipe.epochs} epochs, batches of {recipe.batch_size}, seed {recipe.seed}"
    yield "augmentation", _options({key: value for key, value in config["augment"].items() if value})[2:] or "none"
    yield "checkpoint", f"of epoch {trained.epoch}, the best by {recipe.select_by} on validation"


def _colours(channels: int) -> str:
    return "grey" if channels == 1 else "RGB"


def _options(values: Mapping[str, Any]) -> str:
    return "".join(f", {key} {value}" for key, value in values.items())


def _of_splits(class_names: tuple[str, ...]) -> list[Any]:
    # Not `columns`, for which a name with a slash would lead deeper.
    counts = [(name, lambda split, name=name: str(split["classes"][name])) for name in class_names]
    return [*columns(str, {"images": "images", "maps": "with a human map"}), *counts[:12]]


def _figures(contents: Contents) -> str:
    """The table of figures: of the evaluation, else of the end of training; "" of neither."""
    evaluation, results = contents.evaluation, contents.results
    if evaluation:
        domains = {f"domain {name}": own for name, own in evaluation["domains"].items()}
        return _markdown(
            tabulate_sets(evaluation["sets"] | domains, evaluation["class_names"], bool(evaluation["thresholds"]))
        )
    return _markdown(tabulate_results(results, "Best checkpoint")) if results else ""


def _origin(contents: Contents) -> str:
    provenance = contents.provenance
    if not provenance["packages"]:
        return "Of commit, versions and date of the training nothing is kept: the run had no `run.json`."
    told = [f"{name} {version}" for name, version in provenance["packages"].items() if version]
    commit = f"commit {provenance['commit']}" if provenance["commit"] else "no commit known"
    return (
        f"Trained {provenance['started']} with Python {provenance['python']}, {', '.join(told)}; tfcam_jax: {commit}."
    )


def _markdown(table: Table) -> str:
    """A table with its title as a sentence above it."""
    title, *rows = table.markdown().split("\n")
    return "\n".join([title.removeprefix("### "), *rows])
