"""The runs of a comparison study: which arms, alphas, protocols and seeds, and what is refused before any of them."""

import importlib.util
import pathlib

import fake_layouts
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_manifest import write_manifest
from tiny_run import tiny_config

from tfcam_jax.data.source import DataError, Dataset, Records
from tfcam_jax.data.transforms import IDENTITY
from tfcam_jax.errors import ConfigError
from tfcam_jax.experiment import open_source, resolve
from tfcam_jax.study.outcomes import write_entries
from tfcam_jax.study.plan import placebo_arms, plan_arms, plan_runs

REPO = pathlib.Path(__file__).parent.parent


class Rows:
    """A source that nobody reads."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        raise AssertionError("a plan needs no image")


@pytest.fixture
def config(tmp_path):
    config = tiny_config(write_manifest(tmp_path / "data"))
    config.compare.strategies = ("cross_entropy", "cyborg", "difference")
    return config


@pytest.fixture(scope="module")
def dataset():
    """Three domains of 8 training, 4 validation and 4 test images each, in groups of two, both classes in each."""

    def rows(split, count):
        names = [f"{split}-{domain}-{i}" for domain in "abc" for i in range(count)]
        groups = tuple(f"{name[:-1]}{int(name[-1]) // 2}" for name in names)
        domains = tuple(name.split("-")[1] for name in names)
        labels = np.asarray([int(name[-1]) % 2 for name in names], np.int32)
        return Rows(Records(tuple(names), labels, domains, groups, np.ones(len(names), bool)))

    splits = {"train": rows("train", 8), "val": rows("val", 4), "test": rows("test", 4)}
    return Dataset("drawn", ("dark", "bright"), splits)


def entries(config, dataset):
    return [run.entry for run in plan_runs(config, plan_arms(config), dataset)]


def test_the_default_has_a_run_per_strategy_and_seed(config, dataset):
    config.compare.seeds = (3, 4)
    found = {(e.arm, e.alpha, e.protocol, e.fold, e.seed) for e in entries(config, dataset)}
    arms = [("cross_entropy", None), ("cyborg", 0.5), ("difference", 0.5)]
    assert found == {(*arm, "published", "", seed) for arm in arms for seed in (3, 4)}


def test_every_guided_arm_gets_every_alpha_and_the_baseline_none(config, dataset):
    config.compare.alphas = (0.25, 0.5, 1)
    config.compare.placebos = ("mean_map",)
    found = entries(config, dataset)
    of = lambda arm: [entry.alpha for entry in found if entry.arm == arm]
    assert of("cross_entropy") == [None]
    guided = ["cyborg", "difference", "cyborg_mean_map", "difference_mean_map"]
    assert {entry.arm for entry in found} == {"cross_entropy", *guided}
    assert all(of(arm) == [0.25, 0.5, 1.0] for arm in guided)


def test_controls_differ_from_their_strategy_in_the_placebo_alone(config, dataset):
    config.compare.placebos = ("other_image", "inverted", "border_ring")
    config.compare.placebo_of = ("difference", "opposed")  # opposed is no strategy of this study
    arms = plan_arms(config)
    names = ["difference_other_image", "difference_inverted", "difference_border_ring"]
    assert placebo_arms(config) == {"difference": names}
    control, own = arms["difference_border_ring"].to_dict(), arms["difference"].to_dict()
    assert control["data"]["maps"].pop("placebo") == "border_ring"
    assert own["data"]["maps"].pop("placebo") == "none"
    assert control == own


def test_variants_are_laid_over_the_base_config(config, dataset):
    config.guidance.divergence = "l1"
    config.compare.variants = ConfigDict(
        {
            "kl": {"strategy": "cyborg", "guidance": {"divergence": "kl", "alpha": 0.9}},
            "blurred": {"strategy": "contrast", "data": {"maps": {"blur": 0.1}}},
        }
    )
    config.compare.alphas = (0.1, 0.2)
    runs = plan_runs(config, plan_arms(config), dataset)
    kl = [run for run in runs if run.entry.arm == "kl"]
    assert [(run.config.guidance.divergence, run.entry.alpha) for run in kl] == [("kl", 0.9)]
    blurred = [run.config for run in runs if run.entry.arm == "blurred"]
    assert [(c.data.maps.blur, c.guidance.divergence, c.guidance.alpha) for c in blurred] == [
        (0.1, None, 0.1),
        (0.1, None, 0.2),
    ]
    assert all(run.config.data.maps.blur == 0 for run in runs if run.entry.arm != "blurred")


def test_a_schedule_begins_with_alpha_and_its_grid(config, dataset):
    """In an arm without guidance it is left out; the table's alpha is what training begins with."""
    config.guidance.update(schedule="early", unmarked="flat", unmarked_classes=("some",))
    config.compare.alphas = (0.1, 0.2)
    runs = plan_runs(config, plan_arms(config), dataset)
    found = {(run.entry.arm, run.entry.alpha, run.config.guidance.schedule) for run in runs}
    assert found == {("cross_entropy", None, None)} | {
        (arm, alpha, "early") for arm in ("cyborg", "difference") for alpha in (0.1, 0.2)
    }
    guided = next(resolve(run.config) for run in runs if run.entry.alpha == 0.2)
    assert [guided.alpha_at(8)(step) for step in (0, 3, 4, 7)] == [pytest.approx(0.2), pytest.approx(0.2), 1, 1]
    assert guided.unmarked_classes == ("some",)


def test_an_alpha_that_each_step_finds_is_no_grid(config, dataset):
    """Beside a grid a variant has one run; without a grid every guided arm has one, and cross-entropy no weighting."""
    config.compare.variants = ConfigDict({"shared": {"strategy": "cyborg", "guidance": {"weighting": "loss_share"}}})
    config.compare.alphas = (0.1, 0.2)
    grid = [(entry.arm, entry.alpha) for entry in entries(config, dataset)]
    assert ("shared", None) in grid and len(grid) == 1 + 2 + 2 + 1
    config.compare.alphas, config.guidance.weighting = (), "loss_share"
    runs = plan_runs(config, plan_arms(config), dataset)
    assert {(run.entry.arm, run.entry.alpha, run.config.guidance.weighting) for run in runs} == {
        ("cross_entropy", None, None),
        *((arm, None, "loss_share") for arm in ("cyborg", "difference", "shared")),
    }
    assert all(resolve(run.config).loss_share == (run.entry.arm != "cross_entropy") for run in runs)


def test_protocols_become_folds_each_a_run(config, dataset):
    config.compare.strategies = ("cyborg",)
    config.compare.protocols = ("closed", "open", "leave_one_domain_out", "k_fold")
    config.data.protocol.domains = ("a", "b")
    config.data.protocol.num_folds = 3
    runs = plan_runs(config, plan_arms(config), dataset)
    assert [(run.entry.protocol, run.entry.fold) for run in runs] == [
        ("closed", ""),
        ("open", ""),
        *(("leave_one_domain_out", domain) for domain in "abc"),
        *(("k_fold", str(fold)) for fold in range(3)),
    ]
    values = [(tuple(run.config.data.protocol.domains), run.config.data.protocol.fold) for run in runs]
    assert values == [((), 0), (("a", "b"), 0), (("a",), 0), (("b",), 0), (("c",), 0), ((), 0), ((), 1), ((), 2)]


def test_folders_tell_runs_apart_and_do_not_depend_on_the_others(config, dataset):
    config.compare.strategies = ("cross_entropy", "cyborg")
    config.compare.protocols = ("published", "k_fold")
    config.compare.seeds = (0, 1)
    few = {run.entry.folder: run.config.to_json() for run in plan_runs(config, plan_arms(config), dataset)}
    config.compare.alphas, config.compare.seeds = (0.3, 0.5), (0, 1, 2)
    config.compare.placebos, config.compare.placebo_of = ("mean_map",), ("cyborg",)
    more = [(run.entry.folder, run.config.to_json()) for run in plan_runs(config, plan_arms(config), dataset)]
    assert len(dict(more)) == len(more) == 6 * 3 * (1 + 2 + 2)
    assert few.items() <= dict(more).items()
    assert {"cross_entropy-published-seed0", "cyborg-alpha0.5-k_fold-fold_4-seed1"} <= few.keys()


def test_a_folder_stays_one_folder_whatever_a_domain_is_called(config, dataset):
    records = dataset.splits["train"].records
    renamed = Records(records.ids, records.labels, tuple(f"x/{d}" for d in records.domains), records.groups,
                      records.has_map)  # fmt: skip
    splits = {**dataset.splits, "train": Rows(renamed)}
    config.compare.protocols = ("leave_one_domain_out",)
    found = entries(config, Dataset("drawn", dataset.class_names, splits))
    assert "x/a" in {entry.fold for entry in found}
    assert not any("/" in entry.folder for entry in found)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"strategies": ("cyborgg",)}, "Did you mean 'cyborg'"),
        ({"strategies": ("cyborg", "cyborg")}, "names one twice"),
        ({"strategies": ()}, "nothing to compare"),
        ({"placebos": ("mean",)}, "compare.placebos is 'mean'"),
        ({"placebos": ("none",)}, "compare.placebos is 'none'"),
        (
            {"placebos": ("mean_map",), "placebo_of": ("entropy",), "strategies": ("cyborg", "entropy")},
            "compare.placebo_of is 'entropy'",
        ),
        ({"placebos": ("mean_map",), "placebo_of": ("opposed",)}, "names none of config.compare.strategies"),
        ({"protocols": ("kfold",)}, "Did you mean 'k_fold'"),
        ({"protocols": ("open",)}, "protocol open takes one or more config.data.protocol.domains"),
        (
            {"strategies": ("difference",)},
            "compare.reference is 'cyborg'; the arms are difference. Give --config.compare.reference=difference",
        ),
        ({"seeds": ()}, "compare.seeds"),
        ({"seeds": (1, 1)}, "compare.seeds"),
        ({"seeds": (-1,)}, "compare.seeds"),
        ({"alphas": (0.5, 1.5)}, "compare.alphas"),
        ({"alphas": (0.5, 0.5)}, "compare.alphas"),
        ({"variants": {"cyborg": {}}}, "'cyborg' is the name of another arm"),
        ({"variants": {"mine": {"guidance": {"alfa": 0.1}}}}, "variants.mine: .*alfa"),
        ({"variants": {"mine": {"epochs": "many"}}}, "variants.mine"),
        ({"variants": {"mine": {"seed": 3}}}, "sets 'seed', which all arms"),
        ({"variants": {"mine": {"data": {"protocol": {"name": "closed"}}}}}, "sets 'data.protocol.name'"),
        ({"variants": {"mine": {"strategy": "contrast", "guidance": {"divergence": "l1"}}}}, "arm 'mine': .*no option"),
    ],
)
def test_mistakes_are_named(config, dataset, overrides, message):
    with config.unlocked():
        for key, value in overrides.items():
            config.compare[key] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=message):
        entries(config.lock(), dataset)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"guidance.alpha": 0.3, "compare.alphas": (0.1,)}, "both given"),
        ({"guidance.weighting": "loss_share", "compare.alphas": (0.1,)}, "'loss_share', by which.*compare.alphas"),
        ({"guidance.weighting": "loss_share", "guidance.alpha": 0.3}, "arm 'cyborg': alpha is 0.3 and weighting"),
        ({"data.protocol.name": "k_fold", "compare.protocols": ("closed",)}, "'k_fold', which is not in"),
        ({"data.protocol.domains": ("a",), "compare.protocols": ("closed",)}, "serve protocol open"),
    ],
)
def test_values_that_would_do_nothing_are_refused(config, dataset, overrides, message):
    config.update_from_flattened_dict(overrides)
    with pytest.raises(ConfigError, match=message):
        entries(config, dataset)


def test_a_protocol_that_the_data_cannot_serve_is_named(config):
    config.compare.protocols = ("published", "leave_one_domain_out")
    with pytest.raises(DataError, match="no domain can be left out"):
        entries(config, open_source(resolve(config)))


def load(name):
    spec = importlib.util.spec_from_file_location(name, REPO / f"configs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "write", "folds"),
    [
        ("study_faces", "cyborg_faces", fake_layouts.write_cyborg_faces, {"published": {""}}),
        (
            "study_iris",
            "iris_pad",
            fake_layouts.write_iris_lists,
            {
                "published": {""},
                "leave_one_domain_out": {"artificial", "printout", "textured_contacts"},  # in training
            },
        ),
        (
            "study_chest",
            "chest_xray",
            fake_layouts.write_chest,
            {"published": {""}, "leave_one_domain_out": {"mimic", "nih", "rsna"}},
        ),
    ],
)
def test_the_papers_studies_are_ready_for_whoever_has_the_data(tmp_path, name, source, write, folds):
    config = load(name)
    config.data[source].manual_dir, config.data[source].data_dir = str(write(tmp_path / "owner")), str(tmp_path / "set")
    arms = plan_arms(config)
    runs = plan_runs(config, arms, open_source(resolve(config)))
    found = {}
    for run in runs:
        found.setdefault(run.entry.protocol, set()).add(run.entry.fold)
        assert run.config.data.protocol.name == run.entry.protocol
    assert found == folds
    per_fold = sum(len(names) for names in folds.values())
    entry_arms = {(run.entry.arm, run.entry.alpha) for run in runs}
    assert len(runs) == len(entry_arms) * 10 * per_fold
    assert {"cross_entropy", "cyborg", "opposed", "difference", "contrast", "difference_other_image"} <= arms.keys()
    recipe = runs[0].config
    assert (recipe.model.name, recipe.batch_size, recipe.epochs) == ("densenet121", 20, 50)
    assert resolve(recipe).augment == IDENTITY


def test_runs_that_are_not_asked_for_any_more_are_told(config, dataset, tmp_path, caplog):
    config.compare.seeds = (0, 1)
    entries = [run.entry for run in plan_runs(config, plan_arms(config), dataset)]
    write_entries(tmp_path, entries, "accuracy")
    assert not caplog.text
    write_entries(tmp_path, [entry for entry in entries if not entry.seed], "accuracy")
    gone = [entry.folder for entry in entries if entry.seed]
    assert f"{len(gone)} runs of before are not asked for now" in caplog.text and gone[0] in caplog.text
