"""Files of torch.save, written here byte by byte without PyTorch, are read exactly; hostile and broken ones are not."""

import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tfcam_jax.models.pickles import PickleError, read_pickle
from tfcam_jax.models.state_dicts import StateDictError, read_state_dict

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


# Pickle opcodes (protocol 2), as PyTorch's pickler writes them.
def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def sequence(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + sequence(*arguments) + b"R"


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def tensor(key: str, type_name: str, count: int, shape: tuple, strides: tuple, offset: int = 0, legacy=False) -> bytes:
    view = [b"N"] if legacy else []
    storage = (
        sequence(text("storage"), name_of("torch", type_name), text(key), text("cpu"), number(count), *view) + b"Q"
    )
    return call(
        name_of("torch._utils", "_rebuild_tensor_v2"),
        storage,
        number(offset),
        sequence(*map(number, shape)),
        sequence(*map(number, strides)),
        b"\x89",
        call(name_of("collections", "OrderedDict")),
    )


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def write_zip(path: Path, body: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program(body))
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def write_legacy(path: Path, body: bytes, storages: dict[str, bytes], itemsize: int = 4) -> Path:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    file = io.BytesIO()
    for content in (0x1950A86A20F9469CFC6C, 1001, system):
        pickle.dump(content, file, protocol=2)
    file.write(program(body))
    pickle.dump(sorted(storages), file, protocol=2)
    for key in sorted(storages):
        file.write(struct.pack("<q", len(storages[key]) // itemsize) + storages[key])
    path.write_bytes(file.getvalue())
    return path


WRITERS = {"zip": write_zip, "legacy": write_legacy}


def strides_of(array: np.ndarray) -> tuple:
    return tuple(stride // array.itemsize for stride in array.strides)


def write(path: Path, arrays: dict[str, np.ndarray], file_format: str = "zip") -> Path:
    tensors = {
        name: tensor(
            str(i),
            STORAGES[array.dtype.name],
            array.size,
            array.shape,
            strides_of(array),
            legacy=file_format == "legacy",
        )
        for i, (name, array) in enumerate(arrays.items())
    }
    storages = {str(i): array.tobytes() for i, array in enumerate(arrays.values())}
    return WRITERS[file_format](path, mapping(tensors), storages)


def some_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"conv.weight": rng.random((4, 3, 2, 2), np.float32), "conv.bias": rng.random(4, np.float32)}


def assert_equal(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


@pytest.mark.parametrize("file_format", WRITERS)
def test_reads_what_was_written(tmp_path, file_format):
    assert_equal(read_state_dict(write(tmp_path / "a.pth", some_arrays(), file_format)), some_arrays())


def test_reads_safetensors(tmp_path):
    safetensors.numpy.save_file(some_arrays(), tmp_path / "a.safetensors")
    assert_equal(read_state_dict(tmp_path / "a.safetensors"), some_arrays())


def test_reads_every_common_dtype_and_scalars(tmp_path):
    values = np.array([0.5, -1.25, 3.0])
    arrays = {name: values.astype(jnp.dtype(name)) for name in STORAGES} | {"steps": np.array(7, np.int64)}
    assert_equal(read_state_dict(write(tmp_path / "a.pth", arrays)), arrays)


@pytest.mark.parametrize("file_format", WRITERS)
def test_reads_views_of_one_storage(tmp_path, file_format):
    values = np.arange(12, dtype=np.float32)
    body = mapping(
        {
            "rows": tensor("0", "FloatStorage", 12, (3, 4), (4, 1), legacy=file_format == "legacy"),
            "transposed": tensor("0", "FloatStorage", 12, (4, 3), (1, 4), legacy=file_format == "legacy"),
            "end": tensor("0", "FloatStorage", 12, (2,), (1,), offset=10, legacy=file_format == "legacy"),
        }
    )
    path = WRITERS[file_format](tmp_path / "a.pth", body, {"0": values.tobytes()})
    rows = values.reshape(3, 4)
    assert_equal(read_state_dict(path), {"rows": rows, "transposed": rows.T, "end": values[10:]})


PAIR = {"fc.bias": np.array([1, 2], np.float32)}


def checkpoint(folder: Path, entries: dict[str, bytes], file_format: str = "zip") -> Path:
    """A file whose storage 0 holds the numbers of PAIR."""
    return WRITERS[file_format](folder / "a.pth", mapping(entries), {"0": PAIR["fc.bias"].tobytes()})


def pair(name: str = "fc.bias", legacy: bool = False) -> bytes:
    return mapping({name: tensor("0", "FloatStorage", 2, (2,), (1,), legacy=legacy)})


# What else stands in checkpoints of Lightning and of training scripts, as their picklers write it.
BESIDE = {
    "optimizer_states": b"](" + mapping({"state": mapping({"exp_avg": b"N"})}) + b"e",
    "optimizer": mapping({"state": pair("momentum_buffer"), "param_groups": b"]"}),
    "hyper_parameters": call(name_of("argparse", "Namespace")) + b"}(" + text("lr") + number(1) + b"ub",
    "callbacks": call(name_of("collections", "defaultdict"), name_of("builtins", "dict")) + b"(" + sequence() + b"Nu",
    "best": call(name_of("numpy.core.multiarray", "scalar"), b"N", b"U\x01x"),
    "epoch": number(3),
}


@pytest.mark.parametrize(
    "path",
    [["state_dict"], ["model"], ["net"], ["model_state_dict"], ["model_ema"], ["anything"], ["model", "state_dict"]],
)
@pytest.mark.parametrize("file_format", WRITERS)
def test_reads_a_training_checkpoint_and_says_what_it_left_out(tmp_path, caplog, path, file_format):
    caplog.set_level("INFO")
    body = pair(legacy=file_format == "legacy")
    for key in reversed(path):
        body = mapping({key: body})
    entries = {key: value for key, value in BESIDE.items() if file_format == "zip" or key != "optimizer"}
    state_dict = tmp_path / "a.pth"
    WRITERS[file_format](state_dict, mapping(entries).removesuffix(b"u") + body[2:], {"0": PAIR["fc.bias"].tobytes()})
    assert_equal(read_state_dict(state_dict), PAIR)
    assert f"those under '{path[0]}'; left out: 'optimizer_states'" in caplog.text


def test_of_a_model_and_its_average_the_model_is_taken(tmp_path):
    path = checkpoint(tmp_path, {"model_ema": pair("average"), "model": pair()})
    assert_equal(read_state_dict(path), PAIR)


def test_several_networks_in_one_file_are_told_apart_by_nobody(tmp_path):
    with pytest.raises(StateDictError, match=r"several sets of weights, under 'teacher', 'student'"):
        read_state_dict(checkpoint(tmp_path, {"teacher": pair(), "student": pair()}))


def test_a_network_that_was_saved_whole_is_refused_by_its_name(tmp_path):
    whole = name_of("torchvision.models.resnet", "ResNet") + b")\x81}(" + text("_modules") + pair() + b"ub"
    with pytest.raises(StateDictError, match=r"asks for torchvision\.models\.resnet\.ResNet"):
        read_state_dict(checkpoint(tmp_path, {"epoch": number(3), "model": whole}))


def test_what_is_no_tensor_but_harmless_is_left_out_of_a_state_dict(tmp_path, caplog):
    caplog.set_level("INFO")
    entries = {"fc.bias": tensor("0", "FloatStorage", 2, (2,), (1,)), "version": number(2)}
    assert_equal(read_state_dict(checkpoint(tmp_path, entries)), PAIR)
    assert "left out, as they are no tensors: 'version'" in caplog.text
    entries["extra"] = call(name_of("builtins", "eval"), text("1"))
    with pytest.raises(StateDictError, match=r"for 'extra' it asks for builtins\.eval"):
        read_state_dict(checkpoint(tmp_path, entries))


def test_parameters_of_a_class_of_their_own_are_read(tmp_path):
    plain = tensor("0", "FloatStorage", 2, (2,), (1,))
    rebuild, arguments = name_of("torch._utils", "_rebuild_tensor_v2"), plain[plain.index(b"(") : -1]
    own = call(name_of("torch._tensor", "_rebuild_from_type_v2"), rebuild, name_of("my.code", "Own"), arguments, b"}")
    assert_equal(read_state_dict(checkpoint(tmp_path, {"fc.bias": own})), PAIR)


def nested_tuple(depth: int) -> bytes:
    """A tuple of ten of ten of ... ones: small in the file, 10**depth places to look at."""
    body = b"K\x01q\x00"
    for i in range(depth):
        body += b"0(" + 10 * (b"h" + bytes([i])) + b"tq" + bytes([i + 1])
    return body


BOMBS = {
    "memo": b"K\x01r" + struct.pack("<I", 2**31 - 1),
    "key": b"}(" + nested_tuple(9) + number(1) + b"u",
    "value": mapping({"a": nested_tuple(9)}),
    "shape": mapping({"a": tensor("0", "FloatStorage", 2, (2,), (1,)).replace(sequence(number(2)), nested_tuple(8))}),
    "type": mapping(
        {"a": tensor("0", "FloatStorage", 2, (2,), (1,)).replace(b"ctorch\nFloatStorage\n", nested_tuple(8))}
    ),
    "shared": mapping({f"a{i}": tensor("0", "FloatStorage", 2**18, (2**18,), (1,)) for i in range(20)}),
    "text": b"X" + struct.pack("<I", 2**32 - 1) + b"x",
    "bytes": b"\x96" + struct.pack("<Q", 2**33) + b"x",
}


@pytest.mark.parametrize("file_format", WRITERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_that_would_take_much_memory_or_time_is_refused(tmp_path, bomb, file_format):
    data = bytes(2**20) if bomb == "shared" else bytes(8)
    path = WRITERS[file_format](tmp_path / "a.pth", BOMBS[bomb], {"0": data})
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(StateDictError) as error:
        read_state_dict(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(error.value)) < 400 and time.monotonic() - start < 10
    assert peak < 4 * path.stat().st_size + 2**25


def test_a_pickle_of_too_many_instructions_is_refused():
    pickled = io.BytesIO(program(b"]" * 2000))
    with pytest.raises(PickleError, match="more than 1,000 instructions"):
        read_pickle(pickled, lambda *call: None, max_instructions=1000)


def test_a_stride_along_an_axis_of_one_place_means_nothing(tmp_path):
    strides = b"(\x8a\x08" + struct.pack("<q", 2**62) + number(1) + b"t"
    body = tensor("0", "FloatStorage", 2, (1, 2), (7, 1)).replace(sequence(number(7), number(1)), strides)
    path = checkpoint(tmp_path, {"fc.bias": body})
    assert_equal(read_state_dict(path), {"fc.bias": PAIR["fc.bias"][None]})


@pytest.mark.parametrize("kind", ["F8_E4M3", "F4"])
def test_numbers_that_numpy_has_not_are_refused_by_name(tmp_path, kind):
    size = 4 if kind == "F8_E4M3" else 2
    header = json.dumps({"a": {"dtype": kind, "shape": [4], "data_offsets": [0, size]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(StateDictError, match=rf"type {kind}; save it in float32"):
        read_state_dict(tmp_path / "a.safetensors")


def hostile_bodies(target: Path) -> dict[str, bytes]:
    """Pickles that would create `target` if anything that they name were called."""
    command = f"open({str(target)!r}, 'w').close()"
    rebuild = name_of("torch._utils", "_rebuild_tensor_v2")
    return {
        "eval": call(name_of("builtins", "eval"), text(command)),
        "system": call(name_of("posix", "system"), text(f"touch {target}")),
        "in_a_state_dict": mapping({"a": call(name_of("builtins", "exec"), text(command))}),
        "attribute": call(name_of("torch._utils", "_rebuild_parameter.__func__"), text(command)),
        "numpy": call(name_of("numpy", "fromfile"), text(str(target))),
        "torch_load": call(name_of("torch", "load"), text(str(target))),
        # BUILD sets attributes of a named object.
        "poisoned": rebuild + b"}(" + text("__defaults__") + b"(" + number(1) + b"tubb",
        "open_class": b"(" + text(str(target)) + text("w") + b"iio\nopen\n",
    }


@pytest.mark.parametrize("file_format", WRITERS)
@pytest.mark.parametrize("attack", hostile_bodies(Path("x")))
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, file_format, attack):
    target = tmp_path / "touched"
    path = WRITERS[file_format](tmp_path / "evil.pth", hostile_bodies(target)[attack], {})
    with pytest.raises(StateDictError, match=r"evil\.pth"):
        read_state_dict(path)
    assert not target.exists()


def test_the_attacks_work_on_a_plain_unpickler(tmp_path):
    """Otherwise the test above would prove nothing."""
    pickle.loads(program(hostile_bodies(tmp_path / "touched")["eval"]))
    assert (tmp_path / "touched").exists()


def test_a_refusal_names_what_was_asked_for(tmp_path):
    path = write_zip(tmp_path / "a.pth", call(name_of("argparse", "Namespace")), {})
    with pytest.raises(StateDictError, match=r"a\.pth is refused: it asks for argparse\.Namespace.*safetensors"):
        read_state_dict(path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("file_format", [*WRITERS, "safetensors"])
def test_a_truncated_file_is_refused(tmp_path, file_format, kept):
    path = tmp_path / ("a.safetensors" if file_format == "safetensors" else "a.pth")
    arrays = {"weight": np.arange(400, dtype=np.float32).reshape(20, 20), "bias": np.zeros(20, np.float32)}
    if file_format == "safetensors":
        safetensors.numpy.save_file(arrays, path)
    else:
        write(path, arrays, file_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(StateDictError, match=rf"{path.name} is (truncated|neither)"):
        read_state_dict(path)


def test_flipped_bits_are_found(tmp_path):
    path = write(tmp_path / "a.pth", some_arrays())
    content = bytearray(path.read_bytes())
    content[content.index(some_arrays()["conv.weight"].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(StateDictError, match=r"damaged .*CRC"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((5,), (1,), 0), ((2,), (4,), 0), ((1,), (1,), 4), ((2,), (1,), -1), ((2,), (-1,), 1), ((99, 99), (0, 0), 0)],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, shape, strides, offset):
    body = mapping({"a": tensor("0", "FloatStorage", 4, shape, strides, offset)})
    path = write_zip(tmp_path / "a.pth", body, {"0": bytes(16)})
    with pytest.raises(StateDictError, match=r"'a' of shape .* outside its storage"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"]", "no state dict but list"),
        (b"}", "no state dict but dict"),
        (mapping({"lr": number(1)}), "'lr' is int, not a tensor"),
        (mapping({"a": tensor("0", "FloatStorage", 1, (1,), (1, 1))}), "cannot be read"),
        (mapping({"a": tensor("9", "FloatStorage", 1, (1,), (1,))}), "damaged"),
        (mapping({"a": tensor("0", "OtherStorage", 1, (1,), (1,))}), "torch.OtherStorage"),
    ],
)
@pytest.mark.parametrize("file_format", WRITERS)
def test_other_contents_are_refused(tmp_path, body, message, file_format):
    path = WRITERS[file_format](tmp_path / "a.pth", body, {"0": bytes(4)})
    with pytest.raises(StateDictError, match=message):
        read_state_dict(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_members_are_refused(tmp_path, compression):
    path = write_zip(tmp_path / "a.pth", mapping({}), {"0": bytes(1000)}, compression=compression)
    with pytest.raises(StateDictError, match="has compressed members"):
        read_state_dict(path)


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.pth does not exist"):
        read_state_dict(tmp_path / "missing.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(StateDictError, match=r"page\.pth is neither"):
        read_state_dict(tmp_path / "page.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(StateDictError, match=r"other\.pth is a zip archive, but not"):
        read_state_dict(tmp_path / "other.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(StateDictError, match=r"plain\.pth is a pickle, but not"):
        read_state_dict(tmp_path / "plain.pth")


def test_whatever_is_changed_in_a_file_it_is_read_or_refused_by_name(tmp_path):
    """Bytes overwritten, cut out and put in: also in the zip's directory, whose places then lie before the file."""
    body = mapping({"a": tensor("0", "FloatStorage", 4, (2, 2), (2, 1))}) + b"."
    whole = write_zip(tmp_path / "a.pth", b"\x80\x02" + body.removeprefix(b"\x80\x02"), {"0": bytes(16)}).read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            place, kind = int(rng.integers(len(content))), rng.integers(3)
            if kind == 0:
                content[place] = rng.choice([0, 127, 128, 255])
            elif kind == 1:
                del content[place : place + int(rng.integers(1, 20))]
            else:
                content[place:place] = rng.bytes(4)
        (tmp_path / "b.pth").write_bytes(content)
        try:
            read_state_dict(tmp_path / "b.pth")
        except StateDictError:
            refused += 1
    assert refused > 200
