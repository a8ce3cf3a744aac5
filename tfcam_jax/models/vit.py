"""Vision transformer (Dosovitskiy et al., ICLR 2021), as timm, DeiT and DINO build it, without stochastic depth.

Its tokens go back to the grid of the patches that they began as. What the maps are depends on what is pooled:

- `mean`: the head takes the mean of the patches' tokens after the last block, LayerNorm and one linear layer (timm's
  `global_pool="avg"`): the decomposition is exact, see `normed`.
- `token`: it takes the class token. The features are the patches' tokens as they enter the last block's attention,
  after its first norm (what pytorch-grad-cam's examples take, `blocks[-1].norm1`), and the head is what the class token
  makes of them: attention, perceptron, norm, linear layer. That is not linear; maps are those of the logits' gradient,
  and what their mean leaves of the logit is told as `bias_difference`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, UInt32

from ..errors import ConfigError
from .backbone import Part
from .contract import ModelOutput
from .head import drop_channels, linear
from .initializers import normal, zeros
from .normed import (
    Dense,
    DenseParameters,
    LayerNorm,
    NormedNetwork,
    NormParameters,
    Perceptron,
    gelu,
    kernel_init,
    layer_norm,
)

POOLS = ("token", "mean")

# Module names in timm's state dicts, which DeiT's and DINO's have too -> names here (see weights.py). timm calls the
# norm behind a mean over tokens fc_norm, the one before the choice of the class token norm.
TORCH_NAMES = (
    (r"^(cls_token|pos_embed)$", r"patch_embed.\1"),
    (r"^blocks\.(\d+)\.", r"block\1."),
    (r"^fc_norm\.", "norm."),
)


def adapt(converted: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Weights for images of another size: their position embeddings, resampled to the model's number of patches.

    Both grids are squares; where one is not, the arrays stay as they are, and loading refuses them by their shapes.
    """
    path = ("params", "patch_embed", "pos_embed")
    new, old = (
        cast("dict[tuple[str, ...], Any]", traverse_util.flatten_dict(dict(tree))) for tree in (converted, variables)
    )
    if path in new and path in old:
        grids = [math.isqrt(array.shape[1] - 1) for array in (new[path], old[path])]
        if [1 + grid**2 for grid in grids] == [array.shape[1] for array in (new[path], old[path])]:
            new[path] = np.asarray(resample_positions(jnp.asarray(new[path]), grids[1]))
    return traverse_util.unflatten_dict(new)


def resample_positions(
    embeddings: Float[Array, "1 tokens channels"], grid: int
) -> Float[Array, "1 new_tokens channels"]:
    """Position embeddings of a class token and a square of patches, for a square of `grid` x `grid` patches.

    Bicubic, with antialiasing where the new square is smaller, as timm's `resample_abs_pos_embed`; the class token's
    stays, and so does all for the same size.
    """
    before, channels = math.isqrt(embeddings.shape[1] - 1), embeddings.shape[2]
    if before == grid:
        return embeddings
    of_patches = embeddings[:, 1:].reshape(1, before, before, channels)
    resized = jax.image.resize(of_patches, (1, grid, grid, channels), "cubic", antialias=True)
    return jnp.concatenate([embeddings[:, :1], resized.reshape(1, grid * grid, channels)], axis=1)


class PatchEmbed(nn.Module):
    """A linear layer on each patch, a class token before them, and an embedding of each position."""

    width: int
    patch: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Float[Array, "batch H W 3"]) -> Float[Array, "batch tokens width"]:
        side = (self.patch, self.patch)
        conv = partial(nn.Conv, padding="VALID", dtype=self.dtype, kernel_init=kernel_init, bias_init=zeros)
        patches = conv(self.width, side, side, name="proj")(images)
        patches = patches.reshape(patches.shape[0], patches.shape[1] * patches.shape[2], self.width)
        token = self.param("cls_token", normal(1e-6), (1, 1, self.width))
        positions = self.param("pos_embed", kernel_init, (1, 1 + patches.shape[1], self.width))
        token = jnp.broadcast_to(token.astype(self.dtype), (patches.shape[0], 1, self.width))
        return jnp.concatenate([token, patches], axis=1) + positions.astype(self.dtype)


class Attention(nn.Module):
    """Every token takes from all others, by the softmax of query times key, in each of several heads."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        width = x.shape[-1]
        projected = Dense(3 * width, self.dtype, name="qkv")(x)
        query, key, value = jnp.unstack(projected.reshape(*x.shape[:2], 3, self.heads, width // self.heads), axis=2)
        mixed = jax.nn.dot_product_attention(query, key, value)
        return Dense(width, self.dtype, name="proj")(mixed.reshape(x.shape))


class TransformerBlock(nn.Module):
    """Attention, then a perceptron of four times the width, each behind a LayerNorm and added to x."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        attention = Attention(self.heads, self.dtype, name="attn")
        perceptron = Perceptron(4 * x.shape[-1], self.dtype, name="mlp")
        x = x + attention(LayerNorm(dtype=self.dtype, name="norm1")(x))
        return x + perceptron(LayerNorm(dtype=self.dtype, name="norm2")(x))


class AttentionParameters(nn.Module):
    """Those of `Attention`, which whoever asks for them applies itself."""

    heads: int

    @nn.compact
    def __call__(self, width: int) -> dict[str, Array]:
        kernel, bias = DenseParameters(3 * width, name="qkv")(width)
        names = ("query", "key", "value")
        of_heads = lambda array: jnp.unstack(array.reshape(*array.shape[:-1], 3, self.heads, -1), axis=-3)
        kernels, biases = (dict(zip(names, of_heads(array), strict=True)) for array in (kernel, bias))
        out_kernel, out_bias = DenseParameters(width, name="proj")(width)
        return {
            **{f"{name}_kernel": kernels[name] for name in names},
            **{f"{name}_bias": biases[name] for name in names},
            "out_kernel": out_kernel,
            "out_bias": out_bias,
        }


class PerceptronParameters(nn.Module):
    """Those of `Perceptron`, which whoever asks for them applies itself."""

    hidden: int

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, ...]:
        return (
            *DenseParameters(self.hidden, name="fc1")(width),
            *DenseParameters(width, name="fc2")(self.hidden),
        )


class LastBlockParameters(nn.Module):
    """Those of a `TransformerBlock`, for what its class token alone needs: `class_token_vector`."""

    heads: int

    @nn.compact
    def __call__(self, width: int) -> dict[str, Any]:
        return {
            "norm1": NormParameters(name="norm1")(width),
            "attn": AttentionParameters(self.heads, name="attn")(width),
            "norm2": NormParameters(name="norm2")(width),
            "mlp": PerceptronParameters(4 * width, name="mlp")(width),
        }


class ViT(NormedNetwork):
    """Patches of `patch` px as tokens of `width` numbers, `depth` blocks with `heads` heads of attention each.

    The CAM has a place for each patch: 14x14 at 224 px. Images whose sides are no multiple of the patch are refused.
    Position embeddings are parameters, one for each place: those of loaded weights are resampled (`adapt`). There is no
    hooked tensor. Stochastic depth, of training alone, is left out. The last block's class token
    and what comes behind it are computed in float32 whatever the dtype.

    Attributes:
      pool: what goes into the head, one of `POOLS`, see the top of this module. Weights of either kind can be loaded
        into both; only with its own kind a network says what it did where they come from.
    """

    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    pool: str = "token"

    @property
    def ending(self) -> str:
        """With the class token the last block belongs to what `classify` does: it gives the maps."""
        return "head" if self.pool == "mean" else f"block{self.depth - 1}"

    def parts(self, mask: Array | None) -> list[Part]:
        del mask  # nothing looks at other examples

        def block(name: str, x: Array, train: bool) -> Array:
            return (nn.remat(TransformerBlock) if self.rematerialize else TransformerBlock)(
                self.heads, self.dtype, name=name
            )(x)

        names = [f"block{i}" for i in range(self.depth if self.pool == "mean" else self.depth - 1)]
        return [Part("patch_embed", self._embed), *(Part(name, partial(block, name)) for name in names)]

    def classify(self, x: Array, train: bool, draw: Array | None, shape: tuple[Any, ...]) -> ModelOutput:
        # Tokens do not say the form of their grid; from a cut on only those of squares are taken.
        grid = (
            tuple(side // self.patch for side in shape[1:3]) if len(shape) == 4 else (math.isqrt(x.shape[1] - 1),) * 2
        )
        if self.pool == "mean":
            return self.normed_head(self._to_places(x, grid), train, draw)
        return self._class_token_head(x, grid, train, draw)

    def _embed(self, x: Array, train: bool) -> Float[Array, "batch tokens width"]:
        height, width = x.shape[1:3]
        if height % self.patch or width % self.patch or not height * width:
            raise ConfigError(
                f"images of {height}x{width} px do not fall into patches of {self.patch} px; use a multiple of "
                f"{self.patch} as image size"
            )
        return PatchEmbed(self.width, self.patch, self.dtype, name="patch_embed")(x)

    def _to_places(self, tokens: Array, grid: tuple[int, ...]) -> Float[Array, "batch h w width"]:
        """The patches' tokens, without the class token, on their grid."""
        return tokens[:, 1:].reshape(tokens.shape[0], *grid, self.width)

    def _class_token_head(
        self, tokens: Array, grid: tuple[int, ...], train: bool, draw: UInt32[Array, " batch"] | None
    ) -> ModelOutput:
        tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))
        last = LastBlockParameters(self.heads, name=f"block{self.depth - 1}")(self.width)
        normed = layer_norm(tokens, *last["norm1"])
        features = self._to_places(normed, grid)
        parameters = {**last, "norm": NormParameters(name="norm")(self.width)}
        kernel, bias = self.linear_head(self.width)
        leaves = (parameters, tokens[:, 0], normed[:, 0])
        vector = drop_channels(class_token_vector(*leaves, features), self.dropout if train else 0.0, draw)
        head = jax.tree_util.Partial(class_token_logits, kernel, bias, *leaves)
        return ModelOutput(linear(vector, kernel, bias), features, None, None, head=head)


def class_token_logits(
    kernel: Float[Array, "width classes"],
    bias: Float[Array, " classes"],
    parameters: dict[str, Any],
    token: Float[Array, "batch width"],
    normed: Float[Array, "batch width"],
    features: Float[Array, "batch h w width"],
) -> Float[Array, "batch classes"]:
    """Logits of the class token, as a function of the patches' tokens; the arguments are `class_token_vector`'s."""
    return linear(class_token_vector(parameters, token, normed, features), kernel, bias)


def class_token_vector(
    parameters: dict[str, Any],
    token: Float[Array, "batch width"],
    normed: Float[Array, "batch width"],
    features: Float[Array, "batch h w width"],
) -> Float[Array, "batch width"]:
    """What the last block and the last norm make of the class token; of the other tokens nothing but what it takes.

    With one query, keys and values need not be computed for every token: query times key is `(query @ key_kernel.T)`
    times token, and the mean of values is the value of the mean token, which takes a fraction of the time.

    Args:
      parameters: the last block's, see `LastBlockParameters`, and the last norm's as `norm`.
      token: the class token as it enters the block.
      normed: the same after the block's first norm.
      features: the patches' tokens after that norm.
    """
    of = parameters["attn"]
    batch, height, width, channels = features.shape
    tokens = jnp.concatenate([normed[:, None], features.reshape(batch, height * width, channels)], axis=1)
    query = jnp.einsum("bc,chd->bhd", normed, of["query_kernel"]) + of["query_bias"][None]
    on_tokens = jnp.einsum("bhd,chd->bhc", query, of["key_kernel"])
    scores = jnp.einsum("bhc,bnc->bhn", on_tokens, tokens) + (query * of["key_bias"][None]).sum(-1, keepdims=True)
    weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1)
    mean_tokens = jnp.einsum("bhn,bnc->bhc", weights, tokens)
    values = jnp.einsum("bhc,chd->bhd", mean_tokens, of["value_kernel"]) + of["value_bias"][None]
    token = token + values.reshape(batch, channels) @ of["out_kernel"] + of["out_bias"][None]
    kernel1, bias1, kernel2, bias2 = parameters["mlp"]
    hidden = gelu(layer_norm(token, *parameters["norm2"]) @ kernel1 + bias1[None])
    token = token + hidden @ kernel2 + bias2[None]
    return layer_norm(token, *parameters["norm"])
