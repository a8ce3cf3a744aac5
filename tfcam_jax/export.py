"""A trained model as one StableHLO file that needs neither this package nor its config to run."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export as jax_export

from .data.outputs import resolve_file
from .errors import OutputError, check_known
from .inference import restore
from .run.files import write_bytes
from .steps import make_eval_step

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(workdir: str | Path, out: str | Path, platforms: tuple[str, ...] = PLATFORMS) -> Path:
    """Exports a run's best checkpoint with its weights, for any batch size.

    To run it, with nothing but jax and flatbuffers installed:

        import jax, numpy as np
        model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
        images = np.zeros((1, 224, 224, 3), np.uint8)  # size and channels: model.in_avals
        logits, true_map, false_map, difference = model.call(images)

    The file takes uint8 images [batch, size, size, channels] and standardises them itself. Of the four float32
    results, logits are [batch, classes] and the maps [batch, h, w]; the predicted class counts as the true one.

    Args:
      workdir: a run, or a published model (see `inference.restore`).
      out: the file; an exported model that is there is replaced.
      platforms: where it is to run.

    Returns:
      `out`.

    Raises:
      WorkdirError, CheckpointError: no run with a sound checkpoint there.
      OutputError: `out` is a folder or another file, or can't be written.
      PublishedError: see `inference.restore`.
      ConfigError: an unknown platform.
    """
    target = resolve_file(out)
    if target.exists() and not _is_exported(target):
        raise OutputError(f"{target} is there already and is no exported model: choose another --out, or take it away.")
    for name in platforms or ("",):
        check_known("platform", name, (*PLATFORMS, "rocm"))
    trained = restore(workdir)
    state = jax.device_get(trained.state)  # from all devices to none: the file must not ask for as many
    params, batch_stats = jax.tree.map(jnp.asarray, (state.params, state.batch_stats))
    step = make_eval_step(trained.model, trained.recipe.preprocess)

    def predict(images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        count = images.shape[0]
        nobody = {"label": jnp.full((count,), -1), "saliency": jnp.zeros((count, 1, 1))}
        output = step(params, batch_stats, {"image": images, **nobody})
        return output.logits, output.true_map, output.false_map, output.true_map - output.false_map

    (batch,) = jax_export.symbolic_shape("batch")
    size, channels = trained.recipe.image_size, trained.recipe.data.channels
    images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.uint8)
    exported = jax_export.export(jax.jit(predict), platforms=platforms)(images)
    write_bytes(target, bytes(exported.serialize()))
    return Path(out)


def _is_exported(path: Path) -> bool:
    """Whether a file is what `export_model` writes."""
    try:
        jax_export.deserialize(bytearray(path.read_bytes()))
    except Exception:  # flatbuffers' and jax's own, of whatever kind the bytes provoke
        return False
    return True
