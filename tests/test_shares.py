"""Which cores and accelerators each process of a study has, without any accelerator: what it would set."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import default
from tfcam_jax.devices import accelerators
from tfcam_jax.devices.accelerators import Accelerators, find_accelerators, show_only
from tfcam_jax.devices.compilation import available_cores
from tfcam_jax.errors import ConfigError
from tfcam_jax.study.member import Share
from tfcam_jax.study.shares import choose_shares, leave_memory

NONE, ONE, FOUR = Accelerators("cpu", 0), Accelerators("cuda", 1), Accelerators("cuda", 4)
FRACTION, PREALLOCATE = "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"


def make_config(**keys):
    config = default.get_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    return config


def visible(shares, variable="CUDA_VISIBLE_DEVICES"):
    return [share.environment[variable] for share in shares]


def test_on_a_cpu_a_process_for_each_core_and_nothing_is_set():
    shares = choose_shares(make_config(), NONE)
    assert len(shares) == min(8, len(available_cores()))
    assert sorted(core for share in shares for core in share.cores) == available_cores()[: len(available_cores())]
    assert all(not share.environment for share in shares)
    shares = choose_shares(make_config(compare__processes=len(available_cores()) + 4), NONE)
    assert len(shares) == len(available_cores()) + 4
    assert {share.cores for share in shares} == {tuple(available_cores())}


def test_each_process_sees_a_gpu_of_its_own():
    shares = choose_shares(make_config(), FOUR, {})
    assert visible(shares) == ["0", "1", "2", "3"]
    assert all(FRACTION not in share.environment for share in shares)
    assert visible(choose_shares(make_config(compare__processes=2), FOUR, {})) == ["0", "1"]


@pytest.mark.parametrize(
    ("kind", "given", "variable", "expected"),
    [
        ("cuda", {"CUDA_VISIBLE_DEVICES": "5,2"}, "CUDA_VISIBLE_DEVICES", ["5", "2"]),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-8f, MIG-1a"}, "CUDA_VISIBLE_DEVICES", ["GPU-8f", "MIG-1a"]),
        # CUDA takes -1 as the end of the list, and shows what stands before it.
        ("cuda", {"CUDA_VISIBLE_DEVICES": "3,1,-1,0"}, "CUDA_VISIBLE_DEVICES", ["3", "1"]),
        # Numbers of jax's own are places in CUDA's list.
        (
            "cuda",
            {"CUDA_VISIBLE_DEVICES": "7,6,5", "JAX_CUDA_VISIBLE_DEVICES": "2,0"},
            "JAX_CUDA_VISIBLE_DEVICES",
            ["2", "0"],
        ),
        ("cuda", {"JAX_CUDA_VISIBLE_DEVICES": "all"}, "CUDA_VISIBLE_DEVICES", ["0", "1"]),
        ("rocm", {}, "HIP_VISIBLE_DEVICES", ["0", "1"]),
        ("rocm", {"ROCR_VISIBLE_DEVICES": "4,6"}, "HIP_VISIBLE_DEVICES", ["0", "1"]),
        ("rocm", {"CUDA_VISIBLE_DEVICES": "3,2"}, "CUDA_VISIBLE_DEVICES", ["3", "2"]),
    ],
)
def test_the_choice_of_the_user_or_the_cluster_is_divided(kind, given, variable, expected):
    shares = choose_shares(make_config(), Accelerators(kind, 2), given)
    assert visible(shares, variable) == expected
    assert all(share.environment.keys() == {variable, PREALLOCATE} for share in shares)


@pytest.mark.parametrize(
    ("keys", "found", "expected"),
    [
        ({"parallel__devices": 2}, FOUR, ["0,1", "2,3"]),
        ({"parallel__devices": 3}, FOUR, [None]),
        ({"parallel__mode": "mesh"}, FOUR, [None]),  # which is to take all
        ({"parallel__mode": "pmap"}, FOUR, [None]),
        ({"parallel__mode": "mesh", "parallel__devices": 1}, FOUR, ["0", "1", "2", "3"]),
        ({"parallel__devices": 8}, FOUR, [None]),  # that there are not so many is told by who needs them
        ({"compare__processes": 1}, FOUR, [None]),
        ({}, ONE, [None]),
        ({}, Accelerators("tpu", 4), [None]),
    ],
)
def test_runs_of_several_gpus_or_of_all(keys, found, expected):
    shares = choose_shares(make_config(**keys), found, {})
    assert [share.environment.get("CUDA_VISIBLE_DEVICES") for share in shares] == expected


def test_more_processes_than_gpus_share_them_and_their_memory():
    shares = choose_shares(make_config(compare__processes=8), FOUR, {})
    assert visible(shares) == ["0", "1", "2", "3"] * 2
    assert set(visible(shares, FRACTION)) == {"0.375"}
    assert set(visible(choose_shares(make_config(compare__processes=3), ONE, {}), FRACTION)) == {"0.250"}
    for name in (FRACTION, PREALLOCATE):
        shares = choose_shares(make_config(compare__processes=8), FOUR, {name: "false"})
        assert all(share.environment.get(FRACTION) is None for share in shares)
        assert set(visible(shares, PREALLOCATE)) == {"false" if name == PREALLOCATE else None}


def test_this_process_leaves_the_memory_to_the_others_which_take_it_as_ever(monkeypatch):
    monkeypatch.delenv(PREALLOCATE, raising=False)
    for config in (make_config(compare__processes=1), make_config(parallel__mode="mesh")):
        leave_memory(choose_shares(config, FOUR))
    leave_memory(choose_shares(make_config(), NONE))
    assert PREALLOCATE not in os.environ
    shares = choose_shares(make_config(), FOUR)
    leave_memory(shares)
    assert os.environ[PREALLOCATE] == "false"
    shares[1].take()
    assert PREALLOCATE not in os.environ and os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_a_share_is_taken_before_jax_is_there():
    """In a process of a study: what the environment says when jax is imported."""
    code = """
import sys
from tfcam_jax.study import member
class Watch:
    def find_spec(self, name, *_):
        if name == "jax":
            import os
            print(os.environ["CUDA_VISIBLE_DEVICES"], len(os.sched_getaffinity(0)))
            os._exit(0)
sys.meta_path.insert(0, Watch())
member.threading.Thread.start = lambda self: None
member.serve(None, member.Share((CORE,), {"CUDA_VISIBLE_DEVICES": "3"}), 0, None, frozenset())
"""
    code = code.replace("CORE", str(available_cores()[0]))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3", "1"], done.stderr


def test_without_a_plugin_or_on_request_no_process_is_asked(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    assert find_accelerators() == NONE  # JAX_PLATFORMS=cpu
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(accelerators, "_has_plugin", lambda: False)
    assert find_accelerators() == NONE


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("gpu 4 PJRT C API cuda 12090", FOUR),
        ("a driver's remark\ngpu 2 PJRT C API ROCM 60300", Accelerators("rocm", 2)),
        ("tpu 8 libtpu", Accelerators("tpu", 8)),
        ("cpu 1 <unknown>", NONE),
    ],
)
def test_what_jax_finds_is_asked_in_a_process_of_its_own(monkeypatch, output, expected):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(accelerators, "_has_plugin", lambda: True)
    done = subprocess.CompletedProcess([], 0, output + "\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert find_accelerators() == expected
    done.returncode, done.stderr = 1, "Traceback\nRuntimeError: no driver\n"
    with pytest.raises(ConfigError, match=r"does not start on this host's devices: RuntimeError: no driver\. JAX_P"):
        find_accelerators()


def test_the_question_to_jax_is_one_that_it_answers(monkeypatch):
    """On the CPU, but really asked: platform, number and version are there."""
    done = subprocess.run([sys.executable, "-c", accelerators._COUNT], capture_output=True, text=True, check=True)
    platform, count, version = done.stdout.splitlines()[-1].split(maxsplit=2)
    assert (platform, int(count)) == ("cpu", len(jax.local_devices())) and version


def test_a_share_is_divided_never_widened():
    with pytest.raises(IndexError):
        show_only(FOUR, range(3, 4), {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert dataclasses.replace(Share(), cores=(1,)).environment == {}
