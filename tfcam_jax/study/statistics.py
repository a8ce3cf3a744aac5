"""Statistics of a comparison study: every metric of each arm and seed, intervals, and paired tests between arms.

How the parts of a protocol become one value per seed:

- `k_fold`: the folds' AUROCs weighted by their numbers of (positive, negative) pairs, so that every pair of images that
  one model scored counts once. Scores of different folds come from different models and are never compared: pooling
  them mixes their calibrations, and pooling their ranks is biased where folds differ in their share of positives
  (Forman and Scholz, "Apples-to-apples in cross-validation studies", 2010). Other metrics: mean over images.
- `leave_one_domain_out`: plain mean over the domains left out; each counts once.

What each p-value generalises over:

- `p_seeds`, signs over seeds: other initial weights and batches, on these very test images.
- `p_groups`, both arms exchanged within a group of images, all seeds together: other images of the same sources, for
  these very trained models.
- `p`, the larger of the two: small only where both are, so a difference must hold for other seeds and for other images.
- `p_holm`: `p` after Holm's correction over all comparisons of one protocol and set.

None of them generalises over domains, data sets or settings of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..errors import UserError
from ..metrics.intervals import draw_groups, group_numbers, percentile_interval, weighted_auroc
from ..strategies import OWN, RECONSTRUCTIONS, STRATEGIES
from .outcomes import Outcome
from .paired_tests import exchange_contributions, holm, paired_effect_size, share_won, sign_flip_test, t_interval

METRICS = ("auroc", "accuracy", "cross_entropy", "cc_true", "cc_false", "cc_difference", "fooling_gap")
METRICS += ("positive_inside", "above_outside", "shared_variance")
LEVEL = 0.05


class StudyError(UserError, ValueError):
    """Outcomes that do not belong to one study."""


class _Fold(NamedTuple):
    """The images that every run of one fold was tested on."""

    ids: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]  # numbers, the same in all folds
    pairs: int  # of a positive and a negative; 0 where the score of class 1 has no AUROC, as with three classes


class _Cell(NamedTuple):
    """All tests under one protocol on one set; the images of each fold stand in one order."""

    protocol: str
    set: str
    folds: dict[str, _Fold]
    number_of_groups: int
    runs: dict[str, dict[int, dict[str, Outcome]]]  # arm, seed, fold; complete seeds only
    incomplete: dict[str, list[int]]  # seeds of each arm that lack a fold
    drawn: dict[tuple[str, int], Float[np.ndarray, " resamples"]]  # of `_bootstrap`, by arm and seed

    @property
    def ranked(self) -> dict[str, float]:
        """Weights of the folds that have an AUROC from scores, adding up to 1; none where no fold has one."""
        pairs = {name: fold.pairs for name, fold in self.folds.items() if fold.pairs}
        weights = pairs if self.protocol == "k_fold" else dict.fromkeys(pairs, 1)
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def study_statistics(
    outcomes: Sequence[Outcome],
    reference: str = "cyborg",
    placebos: Mapping[str, Sequence[str]] | None = None,
    strategies: Mapping[str, str] | None = None,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Metrics and comparisons of every protocol and set, JSON-able. What is drawn is drawn from seed 0.

    Args:
      outcomes: of the runs at each arm's chosen alpha.
      reference: every arm that is no placebo is tested against it.
      placebos: of each arm its control arms; the arm is tested against each of them.
      strategies: of each arm its strategy, which says what is a reconstruction; else the beginning of the arm's name.
      resamples: of the bootstrap.

    Returns:
      One entry for each protocol and set, in the order of the outcomes: `protocol`, `set`, `images`, `groups`, `folds`;
      `arms` (`_summarize`; `strategy`; `kind`: "reconstruction", "own", "placebo" or ""); `comparisons` (`_compare`),
      not of validation, on which epoch and alpha were chosen; `missing`, sentences on what could not be compared; and
      `correlations` (`_correlations`).

    Raises:
      StudyError: no outcome, or outcomes that contradict each other: a run twice, two alphas of an arm and protocol,
        other images than another run of the same fold, a score that is not finite.
    """
    if not outcomes:
        raise StudyError("no outcomes: no run of the study is finished")
    placebos = placebos or {}
    alphas: dict[tuple[str, str], float | None] = {}
    sets: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        first = alphas.setdefault((outcome.arm, outcome.protocol), outcome.alpha)
        if first != outcome.alpha:
            raise StudyError(
                f"arm {outcome.arm!r}, protocol {outcome.protocol!r}: outcomes of alpha {first} and of "
                f"{outcome.alpha}. Hand over those of the alpha that was chosen on validation."
            )
        sets.setdefault((outcome.protocol, outcome.set), []).append(outcome)
    kinds: dict[str, dict[str, str]] = {}
    for arm, _ in alphas:
        named = next((name for name in STRATEGIES if f"{arm}_".startswith(f"{name}_")), arm)
        strategy = (strategies or {}).get(arm, named)
        kind = "reconstruction" if strategy in RECONSTRUCTIONS else "own" if strategy in OWN else ""
        kinds[arm] = {"strategy": strategy, "kind": "placebo" if arm in _controls(placebos) else kind}
    return [_statistics(_gather(own, resamples), reference, placebos, kinds) for own in sets.values()]


def _controls(placebos: Mapping[str, Sequence[str]]) -> set[str]:
    return {control for own in placebos.values() for control in own}


def reading_order(statistics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of `study_statistics` as every form of the report shows them: open sets first, validation last."""
    return sorted(statistics, key=lambda entry: (entry["set"] == "val", entry["set"] != "open"))


def _statistics(
    cell: _Cell, reference: str, placebos: Mapping[str, Sequence[str]], kinds: Mapping[str, dict[str, str]]
) -> dict[str, Any]:
    arms = [_summarize(cell, arm) | kinds[arm] for arm in arrange(list(cell.runs), placebos)]
    comparisons, missing = [], []
    # Controls are not tested against the reference: nobody claims it.
    pairs = [(arm, reference, "reference") for arm in cell.runs if arm not in {reference, *_controls(placebos)}]
    pairs += [(arm, control, "placebo") for arm in cell.runs for control in placebos.get(arm, ())]
    for arm, other, against in pairs if cell.set != "val" else ():
        common = sorted(cell.runs.get(arm, {}).keys() & cell.runs.get(other, {}).keys())
        if not common:
            missing.append(f"{arm} - {other} could not be compared: they have no finished seed in common.")
        elif None in _values(cell, arm, "auroc", common):
            missing.append(f"{arm} - {other} could not be compared: this set has no AUROC, as it lacks a class.")
        else:
            comparisons.append(_compare(cell, (arm, other), common) | {"against": against})
    for comparison, corrected in zip(comparisons, holm([c["p"] for c in comparisons]), strict=True):
        comparison |= {"p_holm": corrected, "significant": corrected <= LEVEL}
        comparison |= {"kind": kinds[comparison["arm"]]["kind"], "other_kind": kinds[comparison["other"]]["kind"]}
    return {
        "protocol": cell.protocol,
        "set": cell.set,
        "images": len({name for fold in cell.folds.values() for name in fold.ids}),
        "groups": cell.number_of_groups,
        "folds": list(cell.folds),
        "arms": arms,
        "comparisons": comparisons,
        "missing": missing,
        "correlations": _correlations(arms),
    }


def _gather(outcomes: Sequence[Outcome], resamples: int) -> _Cell:
    """Sorts the outcomes of one protocol and set, puts the images of each fold in one order, and resamples a test."""
    folds: dict[str, Outcome] = {}
    runs: dict[str, dict[int, dict[str, Outcome]]] = {}
    for outcome in outcomes:
        first = folds.setdefault(outcome.fold, outcome)
        by_fold = runs.setdefault(outcome.arm, {}).setdefault(outcome.seed, {})
        if outcome.fold in by_fold:
            raise StudyError(f"{_place(outcome)}: this run is there twice")
        by_fold[outcome.fold] = _aligned(outcome, first)
    joined = lambda field: [value for outcome in folds.values() for value in getattr(outcome, field)]
    numbers = group_numbers(joined("groups"), joined("ids"))
    parts = np.split(numbers, np.cumsum([len(outcome.ids) for outcome in folds.values()])[:-1])
    numbered = {o.fold: _Fold(o.ids, o.labels, own, _pairs(o)) for o, own in zip(folds.values(), parts, strict=True)}
    # A seed that lacks a fold would compare a mean over other folds.
    complete = {arm: {s: by for s, by in seeds.items() if by.keys() == folds.keys()} for arm, seeds in runs.items()}
    incomplete = {arm: sorted(seeds.keys() - complete[arm].keys()) for arm, seeds in runs.items()}
    cell = _Cell(outcomes[0].protocol, outcomes[0].set, numbered, len(np.unique(numbers)), complete, incomplete, {})
    return cell if cell.set == "val" else cell._replace(drawn=_bootstrap(cell, resamples))


def _pairs(outcome: Outcome) -> int:
    counts = np.bincount(outcome.labels, minlength=2)
    return int(counts[0] * counts[1]) if len(counts) == 2 and outcome.metrics["auroc"] is not None else 0


def _place(outcome: Outcome) -> str:
    fold = f", fold {outcome.fold}" if outcome.fold else ""
    return f"arm {outcome.arm!r}, protocol {outcome.protocol!r}{fold}, seed {outcome.seed}, set {outcome.set!r}"


def _aligned(outcome: Outcome, first: Outcome) -> Outcome:
    """The outcome with its images in the order of the first one of its fold."""
    if not np.isfinite(outcome.score).all():
        raise StudyError(f"{_place(outcome)}: a score is not finite. Remove that run's folder and repeat it.")
    rows = {name: row for row, name in enumerate(outcome.ids)}
    if len(rows) < len(outcome.ids):
        raise StudyError(f"{_place(outcome)}: an image is there twice")
    if rows.keys() != set(first.ids):
        raise StudyError(
            f"{_place(outcome)}: its {len(rows)} images are not the {len(first.ids)} of {_place(first)}. "
            "All arms must be tested on the same images."
        )
    order = np.array([rows[name] for name in first.ids], int)
    groups, labels = tuple(outcome.groups[row] for row in order), outcome.labels[order]
    if groups != first.groups or (labels != first.labels).any():
        raise StudyError(f"{_place(outcome)}: labels or groups differ from those of {_place(first)}")
    return outcome._replace(ids=first.ids, groups=groups, labels=labels, score=outcome.score[order])


def arrange(arms: Sequence[str], placebos: Mapping[str, Sequence[str]]) -> list[str]:
    """The arms in their order, each followed by its controls."""
    own = [name for arm in arms if arm not in _controls(placebos) for name in (arm, *placebos.get(arm, ()))]
    return [arm for arm in dict.fromkeys([*own, *arms]) if arm in arms]


def _values(cell: _Cell, arm: str, metric: str, seeds: Sequence[int]) -> list[float | None]:
    """One metric of each seed, its folds combined as the module's docstring says."""
    return [_over_folds(cell, metric, cell.runs[arm][seed]) for seed in seeds]


def _over_folds(cell: _Cell, metric: str, by_fold: Mapping[str, Outcome]) -> float | None:
    if metric == "auroc" and cell.ranked:
        area = lambda o: float(weighted_auroc(o.labels, o.score, np.ones((1, len(o.labels))))[0])
        return float(sum(weight * area(by_fold[fold]) for fold, weight in cell.ranked.items()))
    weigh = lambda outcome: len(outcome.labels) if cell.protocol == "k_fold" else 1
    known = [(weigh(o), value) for o in by_fold.values() if (value := o.metrics[metric]) is not None]
    return sum(w * value for w, value in known) / sum(w for w, _ in known) if known else None


def _summarize(cell: _Cell, arm: str) -> dict[str, Any]:
    """`arm`, `alpha`, `seeds`, `incomplete` (seeds that lack a fold and count nowhere), `figures` and `by_domain`.

    Figures are `_describe` of each metric, and of the AUROC also `bootstrap`, the 95 % interval over seeds and groups;
    `by_domain` is `_describe` of the AUROC of each domain, a seed's value being the mean over its folds.
    """
    seeds = sorted(cell.runs[arm])
    alpha = next((run.alpha for by_fold in cell.runs[arm].values() for run in by_fold.values()), None)
    metrics = {name: _describe(_values(cell, arm, name, seeds)) for name in METRICS}
    metrics["auroc"]["bootstrap"] = _two_level([cell.drawn[arm, seed] for seed in seeds] if cell.drawn else [])
    found = {"arm": arm, "alpha": alpha, "seeds": seeds, "incomplete": cell.incomplete[arm], "figures": metrics}
    domains = sorted(
        {name for by_fold in cell.runs[arm].values() for run in by_fold.values() for name in run.by_domain}
    )
    return found | {"by_domain": {name: _describe(_of_domain(cell, arm, name, seeds)) for name in domains}}


def _of_domain(cell: _Cell, arm: str, domain: str, seeds: Sequence[int]) -> list[float | None]:
    by_seed = [[run.by_domain[domain] for run in cell.runs[arm][s].values() if domain in run.by_domain] for s in seeds]
    return [float(np.mean(values)) if values else None for values in by_seed]


def _describe(values: Sequence[float | None]) -> dict[str, Any]:
    """`values`, and over those that exist `mean`, sample `deviation` and Student's 95 % `interval`, None where none."""
    known = np.array([value for value in values if value is not None], np.float64)
    bounds = t_interval(known)
    return {
        "values": list(values),
        "mean": float(known.mean()) if len(known) else None,
        "deviation": float(known.std(ddof=1)) if len(known) > 1 else None,
        "interval": bounds and list(bounds),
    }


def _compare(cell: _Cell, arms: tuple[str, str], seeds: list[int]) -> dict[str, Any]:
    """The AUROC of the first arm minus that of the second, seed by seed.

    `arm`, `other`, `seeds` in common, `unpaired` seeds that one of both lacks, `difference` (`_describe`, and
    `bootstrap`), `p_seeds` and `smallest_p_seeds` (that so many seeds can give), `p_groups` (None where scores have no
    AUROC: more than two classes), `p`, `effect_size` and `seeds_won`.
    """
    arm, other = arms
    first, second = (np.array(_values(cell, name, "auroc", seeds), np.float64) for name in arms)
    differences = first - second
    over_seeds = sign_flip_test(differences)
    p_groups = sign_flip_test(_group_contributions(cell, arms, seeds)).p if cell.ranked else None
    drawn = [cell.drawn[arm, seed] - cell.drawn[other, seed] for seed in seeds] if cell.drawn else []
    return {
        "arm": arm,
        "other": other,
        "seeds": seeds,
        "unpaired": sorted(cell.runs[arm].keys() ^ cell.runs[other].keys()),
        "difference": _describe(differences.tolist()) | {"bootstrap": _two_level(drawn)},
        "p_seeds": over_seeds.p,
        "smallest_p_seeds": over_seeds.smallest,
        "p_groups": p_groups,
        "p": over_seeds.p if p_groups is None else max(over_seeds.p, p_groups),
        "effect_size": paired_effect_size(differences),
        "seeds_won": share_won(differences),
    }


def _group_contributions(cell: _Cell, arms: tuple[str, str], seeds: Sequence[int]) -> Float[np.ndarray, " groups"]:
    """What each group contributes to the differences of the AUROCs; it adds up to their sum over the seeds."""
    total = np.zeros(cell.number_of_groups)
    for name, weight in cell.ranked.items():
        fold = cell.folds[name]
        for seed in seeds:
            first, second = (cell.runs[arm][seed][name].score for arm in arms)
            own = exchange_contributions(fold.labels, first, second) * weight
            total += np.bincount(fold.groups, own, minlength=len(total))
    return total


def _bootstrap(cell: _Cell, resamples: int) -> dict[tuple[str, int], Float[np.ndarray, " resamples"]]:
    """AUROC of every arm and seed on resampled groups, the same ones for all; NaN where a class of a fold got lost.

    Of G groups G - 1 are drawn, with replacement: that makes the variance unbiased for few groups (Rao and Wu 1988).
    Nothing for a single group, and nothing where the scores have no AUROC.
    """
    if cell.number_of_groups < 2 or not cell.ranked:
        return {}
    count, images = cell.number_of_groups, max(len(fold.labels) for fold in cell.folds.values())
    portions = [_areas(cell, times) for times in draw_groups(count, count - 1, resamples, 0, images)]
    return {run: np.concatenate([portion[run] for portion in portions]) for run in portions[0]}


def _areas(cell: _Cell, times: Int[np.ndarray, "r groups"]) -> dict[tuple[str, int], Float[np.ndarray, " r"]]:
    """AUROC of every arm and seed where each group comes so many times; folds weigh by their resampled pairs."""
    shares = {}
    for name in cell.ranked:
        of_class = [cell.folds[name].groups[cell.folds[name].labels == label] for label in (0, 1)]
        counts = [times @ np.bincount(groups, minlength=cell.number_of_groups) for groups in of_class]
        pairs = (counts[0] * counts[1]).astype(np.float64)
        shares[name] = pairs if cell.protocol == "k_fold" else (pairs > 0).astype(np.float64)
    total = np.sum(list(shares.values()), axis=0)
    lost = total == 0 if cell.protocol == "k_fold" else np.any([share == 0 for share in shares.values()], axis=0)
    drawn = {(arm, s): np.where(lost, np.nan, 0.0) for arm, seeds in cell.runs.items() for s in seeds}
    for name, share in shares.items():
        fold, some = cell.folds[name], share > 0
        weights = times[some][:, fold.groups].astype(np.float64)
        for (arm, s), values in drawn.items():
            area = weighted_auroc(fold.labels, cell.runs[arm][s][name].score, weights)
            values[some] += area * share[some] / total[some]
    return drawn


def _two_level(rows: Sequence[Float[np.ndarray, " resamples"]]) -> list[float] | None:
    """95 % percentile interval of the mean over resampled seeds of AUROCs on resampled groups; None without a seed.

    Of S seeds S - 1 are drawn, as with the groups; a single seed stays. Drawing both crossed levels is on the safe
    side: what differs by seed and image alike counts more than once (Owen, "The pigeonhole bootstrap", 2007).
    """
    if not rows:
        return None
    values = np.stack(rows)
    seeds, resamples = values.shape
    draws = max(1, seeds - 1)
    times = np.random.default_rng(0).multinomial(draws, np.full(seeds, 1 / seeds), size=resamples)
    means = (times.T * values).sum(0) / draws
    bounds = percentile_interval(means[np.isfinite(means)], resamples)
    return bounds and list(bounds)


def _correlations(arms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of `cc_true`, `cc_false` and `cc_difference` with the AUROC: `runs`, and Pearson's r `by_arm` (over each arm's
    seeds), `within_arms` (of all, each arm's mean taken away), `across_arms` (of the arms' means) and `over_all` (of
    all runs as they are, where what differs by arm counts too); None where fewer than three points or no spread.
    """
    found = {}
    for name in ("cc_true", "cc_false", "cc_difference"):
        by_arm = {arm["arm"]: np.array(points) for arm in arms if (points := beside_auroc(arm, name))}
        join = lambda parts: np.array([point for part in parts for point in part]).reshape(-1, 2)
        means = np.array([points.mean(0) for points in by_arm.values()]).reshape(-1, 2)
        found[name] = {
            "runs": sum(map(len, by_arm.values())),
            "by_arm": {arm["arm"]: _pearson(by_arm[arm["arm"]]) if arm["arm"] in by_arm else None for arm in arms},
            "within_arms": _pearson(join(points - points.mean(0) for points in by_arm.values())),
            "across_arms": _pearson(means),
            "over_all": _pearson(join(by_arm.values())),
        }
    return found


def beside_auroc(arm: dict[str, Any], name: str) -> list[tuple[float, float]]:
    """A metric and the AUROC of each seed that has both."""
    pairs = zip(arm["figures"][name]["values"], arm["figures"]["auroc"]["values"], strict=True)
    return [pair for pair in pairs if None not in pair]


def _pearson(points: Float[np.ndarray, "n 2"]) -> float | None:
    if len(points) < 3 or (points.std(0) <= 1e-12).any():
        return None
    return float(np.corrcoef(points.T)[0, 1])
