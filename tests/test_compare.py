"""Whole studies on tiny data: what runs share, what they leave, resuming, failing, several processes."""

import base64
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe

import jax
import numpy as np
import pytest
from absl import logging
from ml_collections import ConfigDict
from PIL import Image
from sklearn.metrics import roc_auc_score
from tiny_manifest import write_manifest
from tiny_run import tiny_config
from tqdm import tqdm

from tfcam_jax.data.in_memory import keep_in_memory
from tfcam_jax.data.source import DataError
from tfcam_jax.experiment import build_experiment, open_dataset, resolve
from tfcam_jax.inference import initial_state
from tfcam_jax.run.files import WorkdirError, write_json
from tfcam_jax.run.interruption import StoppedError
from tfcam_jax.run.workdir import is_fresh, load_config, locked_workdir
from tfcam_jax.study import compare as compare_module
from tfcam_jax.study import page as study_report
from tfcam_jax.study import worker as study_worker
from tfcam_jax.study.compare import FailedRunsError, compare
from tfcam_jax.study.member import Share
from tfcam_jax.study.outcomes import Entry, read_outcomes, read_selection, write_entries
from tfcam_jax.study.plan import plan_arms, plan_runs
from tfcam_jax.study.worker import ExperimentCache
from tfcam_jax.training import train

REPO = pathlib.Path(__file__).parent.parent
ARMS = {"cross_entropy", "cyborg", "cyborg_mean_map"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("data"), train=12)


def make_config(manifest, **overrides):
    config = tiny_config(manifest)
    config.epochs, config.batch_size = 1, 5
    config.compare.strategies, config.compare.processes = ("cross_entropy", "cyborg"), 1
    config.update_from_flattened_dict({f"compare.{key}": value for key, value in overrides.items()})
    return config


def planned(config):
    return plan_runs(config, plan_arms(config), ExperimentCache(0).source(resolve(config)))


def without_pictures(monkeypatch):
    monkeypatch.setattr(compare_module, "draw_comparison", lambda *_: None)
    monkeypatch.setattr(study_report, "draw_study", lambda *_: [])


@pytest.fixture(scope="module")
def study(manifest, tmp_path_factory):
    """A finished study: its folder, config and what it returned."""
    workdir = tmp_path_factory.mktemp("studies") / "study"
    config = make_config(manifest, alphas=(0.3, 0.6), seeds=(0, 1), placebos=("mean_map",))
    return workdir, config, compare(config, workdir, num_images=3)


def test_a_study_leaves_table_picture_selection_and_a_workdir_for_each_run(study):
    workdir, config, found = study
    assert [entry["set"] for entry in found["statistics"]] == ["val", "closed", "open"]
    assert all({arm["arm"] for arm in entry["arms"]} == ARMS for entry in found["statistics"])
    assert found["placebos"] == {"cyborg": ["cyborg_mean_map"]}
    assert found["provenance"]["config"]["compare"]["seeds"] == [0, 1]
    assert (workdir / "table.txt").exists() and (workdir / "index.html").exists()
    maps = (workdir / "maps.png").read_bytes()
    assert maps.startswith(b"\x89PNG") and base64.b64encode(maps).decode() in (workdir / "index.html").read_text()
    assert json.loads((workdir / "study.json").read_text()) == found
    folders = {path.name for path in workdir.iterdir() if path.is_dir()}
    assert folders == {run.entry.folder for run in planned(config)} and len(folders) == 2 * (1 + 2 + 2)
    stored = ConfigDict(load_config(workdir / "cyborg_mean_map-alpha0.3-published-seed1"))
    assert (stored.seed, stored.guidance.alpha, stored.data.maps.placebo) == (1, 0.3, "mean_map")


def test_alpha_is_the_best_on_validation(study):
    """From the runs' own files, by hand."""
    workdir, _, found = study
    selection = found["selection"]
    for arm in ("cyborg", "cyborg_mean_map"):
        means = {}
        for alpha in (0.3, 0.6):
            files = [workdir / f"{arm}-alpha{alpha}-published-seed{seed}/results.json" for seed in (0, 1)]
            means[alpha] = np.mean([json.loads(file.read_text())["sets"]["val"]["accuracy"] for file in files])
        entry = selection["published"][arm]
        assert [e["validation"] for e in entry["alphas"]] == [pytest.approx(means[alpha]) for alpha in (0.3, 0.6)]
        assert entry["chosen"] == max(means, key=lambda alpha: (means[alpha], alpha))
        assert [entry["runs"] for entry in entry["alphas"]] == [2, 2]
    assert [entry["alpha"] for entry in selection["published"]["cross_entropy"]["alphas"]] == [None]


def test_outcomes_are_those_of_the_chosen_alpha_and_their_figures_follow_from_their_scores(study):
    workdir, _, found = study
    outcomes, selection = read_outcomes(workdir), found["selection"]
    assert {(o.arm, o.seed, o.set) for o in outcomes} == {
        (arm, seed, name) for arm in selection["published"] for seed in (0, 1) for name in ("val", "closed", "open")
    }
    for outcome in outcomes:
        assert outcome.alpha == selection["published"][outcome.arm]["chosen"]
        assert len(outcome.ids) == len(outcome.groups) == len(outcome.score) == {"val": 8}.get(outcome.set, 6)
        assert outcome.metrics["auroc"] == pytest.approx(roc_auc_score(outcome.labels, outcome.score))
        assert outcome.metrics["accuracy"] == np.mean((outcome.score > 0.5) == outcome.labels)
        likelihood = np.where(outcome.labels == 1, outcome.score, 1 - outcome.score)
        assert outcome.metrics["cross_entropy"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-4)
        assert 0 <= outcome.metrics["fooling_gap"] <= 1 and -1 <= outcome.metrics["cc_difference"] <= 1
    opened = {o.ids for o in outcomes if o.set == "open"}
    assert opened == {tuple(f"images/test{i}.png" for i in range(6, 12))}


@pytest.mark.slow
def test_a_finished_study_is_read_and_a_grown_one_trains_only_what_is_new(study, monkeypatch):
    workdir, config, found = study
    trained = []
    monkeypatch.setattr(study_worker, "train_recipe", lambda config, folder, *_, **__: trained.append(folder.name))
    assert compare(config, workdir, num_images=3)["statistics"] == found["statistics"] and not trained
    grown = config.copy_and_resolve_references()
    grown.compare.strategies = ("cross_entropy", "cyborg", "opposed")
    without_pictures(monkeypatch)
    compare(grown, workdir)
    assert trained == [f"opposed-alpha{alpha}-published-seed{seed}" for alpha in (0.3, 0.6) for seed in (0, 1)]
    write_entries(workdir, [run.entry for run in planned(config)], "accuracy")


@pytest.mark.slow
def test_a_study_does_not_grow_over_changed_data(study, manifest, tmp_path, monkeypatch, caplog):
    """Finished runs too are of other data then; without a change all is as before, wherever time stamps stand."""
    workdir, config, _ = study
    trained = []
    monkeypatch.setattr(study_worker, "train_recipe", lambda config, folder, *_, **__: trained.append(folder.name))
    without_pictures(monkeypatch)
    grown = config.copy_and_resolve_references()
    grown.compare.seeds = (0, 1, 2)
    contents = {path: path.read_bytes() for path in (manifest, manifest.parent / "images/train1.png")}
    try:
        rows = contents[manifest].decode()
        manifest.write_text(rows.replace("train,dark,images/train2", "train,bright,images/train2"))
        Image.new("RGB", (32, 32), (9, 8, 7)).save(manifest.parent / "images/train1.png")
        for each in (grown, config):
            with pytest.raises(DataError) as refused:
                compare(each, workdir)
            told, *lines, _ = str(refused.value).splitlines()
            assert "those that cross_entropy-published-seed0, " in told and "... and 8 more were trained on:" in told
            assert lines == [
                "  train: content of 1 image (images/train1.png)",
                "  train: labels of 1 image (images/train2.png)",
            ]
        assert not trained
        compare(grown, workdir, accept_changed_data=True)
        assert "train: labels of 1 image (images/train2.png)" in caplog.text and len(trained) == 5
    finally:
        for path, content in contents.items():
            path.write_bytes(content)
        write_entries(workdir, [run.entry for run in planned(config)], "accuracy")
    caplog.clear()
    compare(config, workdir)
    assert not caplog.text


def test_other_settings_in_the_same_folder_are_refused(study, tmp_path):
    workdir, config, _ = study
    other = config.copy_and_resolve_references()
    other.epochs = 2
    with pytest.raises(WorkdirError, match="epochs: 1 there, 2 asked for"):
        compare(other, workdir)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(WorkdirError, match="holds no study"):
        compare(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_a_run_of_a_study_is_the_run_that_training_alone_gives(study, tmp_path):
    """Shared data, held images and shared programs change no bit."""
    workdir, *_ = study
    for folder in ("cyborg-alpha0.6-published-seed1", "cyborg_mean_map-alpha0.3-published-seed1"):
        alone = train(ConfigDict(load_config(workdir / folder)), tmp_path / folder)
        assert json.loads((workdir / folder / "results.json").read_text()) == alone
        for name in ("metrics.jsonl", "scores.csv"):
            assert (workdir / folder / name).read_bytes() == (tmp_path / folder / name).read_bytes()


@pytest.mark.slow
def test_arms_of_a_seed_share_weights_batches_and_number_of_steps(study):
    cache, runs = ExperimentCache(64), planned(study[1])
    built = {run.entry: cache.experiment(resolve(run.config)) for run in runs if run.entry.seed == 1}
    assert len(built) == 5
    first = next(iter(built.values()))
    other_seed = cache.experiment(resolve(next(run.config for run in runs if run.entry.seed == 0)))
    kernel = lambda experiment: initial_state(experiment).state.params["head"]["kernel"]
    assert (kernel(first) != kernel(other_seed)).any()
    for entry, experiment in list(built.items())[1:]:
        jax.tree.map(np.testing.assert_array_equal, *(initial_state(each).state.params for each in (first, experiment)))
        assert experiment.steps_per_epoch == first.steps_per_epoch == 3
        for epoch in (0, 1):
            for a, b in zip(first.train_epoch(epoch), experiment.train_epoch(epoch), strict=True):
                different = {name for name in a if not np.array_equal(a[name], b[name])}
                assert different == ({"saliency"} if "mean_map" in entry.arm and a["saliency"].any() else set())
    lengths = {len((study[0] / run.entry.folder / "metrics.jsonl").read_text().splitlines()) for run in runs}
    assert len(lengths) == 1


def test_seeds_share_programs_and_arms_share_data(study):
    cache, runs = ExperimentCache(64), planned(study[1])
    cyborg = [cache.experiment(resolve(run.config)) for run in runs if run.entry.arm == "cyborg"]
    assert cyborg[0].train_step is cyborg[1].train_step and cyborg[0].initialize is cyborg[1].initialize
    assert cyborg[1].train_step is not cyborg[2].train_step  # the other alpha
    baseline = cache.experiment(resolve(next(run.config for run in runs if run.entry.arm == "cross_entropy")))
    assert baseline.dataset is cyborg[0].dataset
    control = cache.experiment(resolve(next(run.config for run in runs if run.entry.arm == "cyborg_mean_map")))
    assert control.dataset.splits["test"] is baseline.dataset.splits["test"]


@pytest.mark.parametrize("augment", [{}, {"flip": 0.5, "rotate": 20.0, "translate": 0.1, "brightness": 0.2}])
def test_held_examples_are_those_of_the_source(manifest, augment):
    config = make_config(manifest)
    config.data.image_size = 20
    config.augment.update(augment)
    dataset = open_dataset(resolve(config))
    held = keep_in_memory(dataset, ("train", "val", "test"), 20)
    for _ in range(2):
        for batches in (lambda e: e.train_epoch(3), lambda e: e.eval_epoch(e.dataset.splits["test"])):
            pairs = zip(
                batches(build_experiment(resolve(config), dataset)),
                batches(build_experiment(resolve(config), held)),
                strict=True,
            )
            for expected, actual in pairs:
                jax.tree.map(np.testing.assert_array_equal, expected, actual)


def test_what_does_not_fit_or_is_cropped_is_not_held(manifest):
    config = make_config(manifest)
    config.data.image_size, config.data.cache_megabytes = 20, 0
    name = lambda dataset, split: type(dataset.splits[split]).__name__
    assert name(ExperimentCache(0).dataset(resolve(config)), "train") == "ListedSource"
    assert name(ExperimentCache(1).dataset(resolve(config)), "train") == "InMemory"
    config.augment.crop = 0.2
    dataset = ExperimentCache(1).dataset(resolve(config))
    assert (name(dataset, "train"), name(dataset, "val")) == ("ListedSource", "InMemory")
    config.augment.crop, config.data.maps.resize = 0.0, "straight"
    dataset = ExperimentCache(1).dataset(resolve(config))
    assert (name(dataset, "train"), name(dataset, "val")) == ("ListedSource", "InMemory")
    config.data.maps.resize, config.data.resize_through = "with_image", (30,)
    dataset = ExperimentCache(1).dataset(resolve(config))
    assert (name(dataset, "train"), name(dataset, "val")) == ("ListedSource", "ListedSource")


def test_arms_of_another_image_size_hold_their_own_images(manifest):
    cache, config = ExperimentCache(1), make_config(manifest)
    for size in (20, 24):
        config.data.image_size = size
        splits = cache.dataset(resolve(config)).splits
        assert {splits[name][0].image.shape for name in ("train", "val")} == {(size, size, 3)}


def test_notes_on_the_data_that_another_process_told_are_not_told_again(tmp_path, caplog):
    logging.get_absl_logger().propagate = True
    manifest = write_manifest(tmp_path)
    Image.new("L", (32, 32), 255).save(tmp_path / "maps/train0.png")
    recipe, note = resolve(make_config(manifest)), "1 maps of train are empty or constant"
    first = ExperimentCache(0)
    first.source(recipe)
    assert caplog.text.count(note) == 1
    ExperimentCache(0, told=first.told).source(recipe)
    assert caplog.text.count(note) == 1
    ExperimentCache(0).source(recipe)
    assert caplog.text.count(note) == 2


def test_each_domain_of_a_test_is_told_from_the_images_that_the_scores_file_names(tmp_path):
    """Kinds of one class against all images of the other, by pairs; the closed set here is one domain."""
    folder = tmp_path / "cyborg-alpha0.5-published-seed0"
    folder.mkdir()
    rng, kinds = np.random.default_rng(0), ["new_a", "new_b", ""]
    rows = [("val", name, "old") for name in ("dark", "bright")]
    rows += [("test", name, "old") for name in ("dark", "bright") * 3]
    rows += [("test", "bright", kinds[i % 3]) for i in range(9)]
    margin = rng.normal(size=len(rows)).round(1)
    head = "id,split,label,domain,group,seen,logit_dark,logit_bright,p,prediction,margin"
    lines = [
        f"{i},{split},{label},{domain},,{'yes' if domain == 'old' else 'no'},{-m / 2},{m / 2},0.5,dark,{m}"
        for i, ((split, label, domain), m) in enumerate(zip(rows, margin, strict=True))
    ]
    (folder / "scores.csv").write_text("\n".join([head, *lines]) + "\n")
    agreement = {"map_agreement": dict.fromkeys(("true", "false", "difference"), 0.1), "fooling_gap": 0.1}
    own = {"auroc": 0.5, "accuracy": 0.5, "cross_entropy": 0.7, **agreement}
    write_json(folder / "results.json", {"sets": dict.fromkeys(("val", "closed", "open"), own)})
    write_entries(tmp_path, [Entry(folder.name, "cyborg", 0.5, "published", "", 0)], "auroc")
    found = {outcome.set: outcome.by_domain for outcome in read_outcomes(tmp_path)}
    assert found["val"] == {} and found["closed"] == {}
    dark = [m for (split, label, _), m in zip(rows, margin, strict=True) if (split, label) == ("test", "dark")]
    for kind in kinds[:2]:
        bright = [m for (_, _, domain), m in zip(rows, margin, strict=True) if domain == kind]
        won = np.mean([(b > d) + (b == d) / 2 for b in bright for d in dark])
        assert found["open"][kind] == pytest.approx(won)
    assert found["open"].keys() == {"new_a", "new_b"}


def test_a_failing_run_does_not_lose_the_others(manifest, tmp_path, monkeypatch):
    config = make_config(manifest)
    original = study_worker.train_recipe

    def fails_once(recipe, folder, *arguments, **options):
        if folder.name == "cyborg-alpha0.5-published-seed0":
            raise MemoryError("no room")
        return original(recipe, folder, *arguments, **options)

    without_pictures(monkeypatch)
    monkeypatch.setattr(study_worker, "train_recipe", fails_once)
    with pytest.raises(
        FailedRunsError, match=r"1 of 2 runs failed[^\n]*\n  cyborg-alpha0\.5-published-seed0: MemoryError: no"
    ):
        compare(config, tmp_path / "study", num_images=2)
    assert "fails_once" in (tmp_path / "study/failures.txt").read_text()
    assert [o.arm for o in read_outcomes(tmp_path / "study") if o.set == "open"] == ["cross_entropy"]
    monkeypatch.setattr(study_worker, "train_recipe", original)
    compare(config, tmp_path / "study", num_images=2)
    assert len(read_outcomes(tmp_path / "study")) == 2 * 3
    assert not (tmp_path / "study/failures.txt").exists()


@pytest.mark.slow
def test_several_processes_give_the_same_and_outlive_one_that_dies(study, manifest, tmp_path, monkeypatch):
    workdir, config, _ = study
    runs = [run for run in planned(config) if run.entry.arm != "cyborg_mean_map" and run.entry.alpha != 0.3][:3]
    runs[0].config.data.manifest = str(tmp_path / "absent.csv")
    killed, finish = [], study_worker._Member.finish

    def kill_first(member, stopping):
        if not killed:
            killed.append(member.run.entry.folder)
            os.kill(member._process.pid, signal.SIGKILL)
            member._process.join()
            member.pipe.recv()  # the answer that it had sent before
        return finish(member, stopping)

    monkeypatch.setattr(study_worker._Member, "finish", kill_first)
    with tqdm(total=len(runs), disable=True) as bar:
        failures = study_worker.train_in_processes(runs, tmp_path, [Share(), Share()], 64, bar)
    broken = runs[0].entry.folder
    assert failures.keys() == {broken, *killed}
    assert "exit code -9" in failures[killed[0]]
    assert killed[0] == broken or "absent.csv" in failures[broken]
    done = [run.entry.folder for run in runs if run.entry.folder not in failures]
    assert done
    for folder in done:
        first, second = (json.loads((parent / folder / "results.json").read_text()) for parent in (workdir, tmp_path))
        assert first["sets"]["open"]["cross_entropy"] == pytest.approx(
            second["sets"]["open"]["cross_entropy"], rel=1e-4
        )


def test_a_signal_to_one_process_stops_the_study(manifest, tmp_path, monkeypatch):
    """Not the process's run alone: whoever sent it wants the machine back."""
    runs = planned(make_config(manifest))
    member = object.__new__(study_worker._Member)
    member.run, (member.pipe, other) = runs[0], Pipe()
    cache = ExperimentCache(0)
    monkeypatch.setattr(cache, "train", lambda *_: (_ for _ in ()).throw(StoppedError("stopped by SIGTERM", 143)))
    study_worker.attempt_and_send(other, cache, runs[0], tmp_path)
    with pytest.raises(StoppedError, match="stopped by SIGTERM") as caught:
        member.finish()
    assert caught.value.exit_code == 143
    with pytest.raises(StoppedError):
        study_worker.train_here(cache, runs, tmp_path, tqdm(disable=True))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_has_every_process_save_and_ends_all(manifest, tmp_path, number, code):
    config = make_config(manifest)
    config.epochs = 10_000
    runs = planned(config)
    trains = lambda: all(list((tmp_path / run.entry.folder).glob("metrics.jsonl")) for run in runs)

    def send():
        while not trains():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with tqdm(total=len(runs), disable=True) as bar, pytest.raises(StoppedError) as stopped:
        study_worker.train_in_processes(runs, tmp_path, [Share(), Share()], 64, bar)
    assert stopped.value.exit_code == code and not multiprocessing.active_children()
    for run in runs:
        assert list((tmp_path / run.entry.folder / "checkpoints").glob("[0-9]*/state"))


@pytest.mark.parametrize("begun", [False, True])
def test_processes_of_a_study_end_with_it_also_before_jax_is_there(tmp_path, begun):
    """However the parent ends: here by SIGKILL, while its process starts, or imports jax."""
    (tmp_path / "parent.py").write_text("""
import multiprocessing, pathlib, sys, time
from tfcam_jax.study.member import Share, serve
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(other, Share((0,)), 0, pathlib.Path("x")))
    process.start()
    print(process.pid, "jax" in sys.modules, flush=True)
    time.sleep(60)
""")
    command, environment = [sys.executable, tmp_path / "parent.py"], {**os.environ, "PYTHONPATH": str(REPO)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    child, has_jax = parent.stdout.readline().split()
    end = time.monotonic() + 5.0
    while begun and "Threads:\t1\n" in status(child) and time.monotonic() < end:  # the second one watches
        time.sleep(0.01)
    parent.kill()
    parent.wait()  # not for its output, which the child has open too
    parent.stdout.close()
    assert has_jax == "False"
    end = time.monotonic() + 1.0
    while (alive := "State:\tZ" not in status(child) != "") and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive


def status(pid):
    """What the system says of a process; "" if it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_two_studies_at_once_in_a_folder(manifest, tmp_path):
    workdir = tmp_path / "study"
    workdir.mkdir()
    with locked_workdir(workdir), pytest.raises(WorkdirError, match=r"another process trains in .*study"):
        compare(make_config(manifest), workdir)
    assert [path.name for path in workdir.iterdir()] == [".lock"] and is_fresh(workdir)


def write_results(workdir, entry, accuracy, cross_entropy=0.5):
    figures = dict.fromkeys(("auroc", "fooling_gap"), 0.5) | {"accuracy": accuracy, "cross_entropy": cross_entropy}
    figures["map_agreement"] = dict.fromkeys(("true", "false", "difference"))
    (workdir / entry.folder).mkdir(parents=True)
    write_json(workdir / entry.folder / "results.json", {"sets": {"val": figures, "open": figures}})


@pytest.mark.parametrize(
    ("select_by", "values", "chosen"),
    [
        ("accuracy", {0.2: [0.9, 0.7], 0.5: [0.8, 0.8], 0.8: [0.6, 0.9]}, 0.5),  # a tie: the larger
        ("accuracy", {0.2: [0.9, 0.9], 0.5: [1.0]}, 0.2),  # the other run of 0.5 failed
        ("cross_entropy", {0.2: [0.3, 0.2], 0.5: [0.9, 0.8]}, 0.2),  # the smallest
    ],
)
def test_selection(tmp_path, select_by, values, chosen):
    make = functools.partial(Entry, arm="cyborg", protocol="published", fold="")
    entries = [make(f"{alpha}-{seed}", alpha=alpha, seed=seed) for alpha in values for seed in (0, 1)]
    write_entries(tmp_path, entries, select_by)
    for alpha, runs in values.items():
        for seed, value in enumerate(runs):
            own = {"accuracy": 0.5, "cross_entropy": 0.5} | {select_by: value}
            write_results(tmp_path, next(e for e in entries if (e.alpha, e.seed) == (alpha, seed)), **own)
    found = read_selection(tmp_path)["published"]["cyborg"]
    assert (found["chosen"], found["select_by"]) == (chosen, select_by)
    assert [entry["runs"] for entry in found["alphas"]] == [len(runs) for runs in values.values()]
    assert found["alphas"][0]["test"]["open"][select_by] == pytest.approx(np.mean(values[0.2]))
    assert found["alphas"][0]["test"]["open"]["cc_true"] is None


def test_a_data_set_can_be_handed_in(manifest):
    config = make_config(manifest)
    dataset = dataclasses.replace(open_dataset(resolve(config)), name="handed in")
    assert build_experiment(resolve(config), dataset).dataset.name == "handed in"
