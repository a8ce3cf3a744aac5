"""Files of torch.save, written here byte by byte without PyTorch, are read exactly; hostile and broken ones are not."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

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


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_reads_a_training_checkpoint_of_a_parallel_model(tmp_path, wrapper):
    tensors = {"module.fc.bias": tensor("0", "FloatStorage", 2, (2,), (1,))}
    body = mapping({"epoch": number(3), wrapper: mapping(tensors), "best": b"N"})
    path = write_zip(tmp_path / "a.pth", body, {"0": np.array([1, 2], np.float32).tobytes()})
    assert_equal(read_state_dict(path), {"fc.bias": np.array([1, 2], np.float32)})


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


def test_compressed_members_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.pth", mapping({}), {"0": bytes(1000)}, compression=zipfile.ZIP_DEFLATED)
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
