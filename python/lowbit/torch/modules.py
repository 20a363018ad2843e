"""The modules that quantize_ puts in place of torch's: weights in plain buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lowbit.config import Config
from lowbit.torch import ops

__all__ = ["FeedForward", "PassThrough", "QuantEmbedding", "QuantLinear", "ResidualNorm", "Whole"]


class QuantLinear(nn.Module):
    """A linear layer on integers, weights of 8 bits or fewer: ``y = x Wᵀ + bias``.

    Buffers: ``tiled``, uint8, the codes, scales and equalizer as FORMATS.md says
    under "Layer weights"; ``bias``, float32 (N,), or None; ``codebook``, the tables that
    codes look up (:class:`lowbit.CodebookWeight`), or None: int8, or for inputs as they are
    bfloat16, float32 where that holds more. Layers may have one codebook together.

    A layer that `quantize_` fused with the one before runs both, with the
    activation between, as one operator; the first then hands its input on. In
    training mode each runs by itself.
    """

    tiled: torch.Tensor
    bias: torch.Tensor | None
    codebook: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        tiled: torch.Tensor,
        bias: torch.Tensor | None,
        config: Config,
        dtype: torch.dtype = torch.float32,
        codebook: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.config = config
        self.dtype = dtype
        self.register_buffer("tiled", tiled)
        self.register_buffer("bias", bias)
        self.register_buffer("codebook", codebook)
        #: The layer before, run by this one with the activation between.
        self._up: tuple[QuantLinear, str] | None = None
        #: Whether the layer after runs this one.
        self._deferred = False

    @property
    def weight(self) -> torch.Tensor:
        """Shape and dtype of the weight before, on the meta device: no data."""
        return torch.empty((self.out_features, self.in_features), dtype=self.dtype, device="meta")

    def dequantize(self) -> torch.Tensor:
        """The weight that the codes stand for, (N, K)."""
        return ops.dequantize(self.tiled, self.in_features, self.out_features, self.codebook).to(self.dtype)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of that weight, float32."""
        return ops.embedding_tiled(indices, self.tiled, self.in_features, self.out_features, self.codebook)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._deferred and not self.training:
            return x
        if self._up is not None and not self._up[0].training:
            return self._with_up(x)
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected (..., {self.in_features}), got {tuple(x.shape)}")
        buffers = self._buffers  # twice as quick as nn.Module's attributes
        tiled, bias, codebook = buffers["tiled"], buffers["bias"], buffers["codebook"]
        if not torch.compiler.is_compiling() and x.numel() <= 4096:
            return ops.small_linear(x, tiled, bias, self.out_features, codebook)  # type: ignore[arg-type]
        return ops.linear(x, tiled, bias, self.out_features, codebook=codebook)

    def _with_up(self, x: torch.Tensor, *after: Any) -> torch.Tensor:
        assert self._up is not None
        return _mlp(x, *self._up, self, *after)

    def extra_repr(self) -> str:
        fused = f", after {self._up[1]}" if self._up else ", deferred" if self._deferred else ""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.config}{fused}"


def _mlp(x: torch.Tensor, up: QuantLinear, activation: str, down: QuantLinear, *after: Any) -> torch.Tensor:
    """Both layers with the activation between, as one operator."""
    if x.shape[-1] != up.in_features:
        raise ValueError(f"x: expected (..., {up.in_features}), got {tuple(x.shape)}")
    return ops.mlp(
        x, up.tiled, up.bias, up.out_features, activation, down.tiled, down.bias, down.out_features, *after,
        up_codebook=up.codebook, down_codebook=down.codebook,
    )  # fmt: skip


class PassThrough(nn.Module):
    """An activation that the layer after runs; by itself in training mode."""

    def __init__(self, activation: nn.Module, before: QuantLinear) -> None:
        super().__init__()
        self.activation = activation
        self._before = (before,)  # in a tuple: it is registered elsewhere

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x) if self._before[0].training else x


class Whole(nn.Module):
    """Stands for a module that runs as one operator. The names of its children
    stay, and whatever else the module had is still found."""

    def __init__(self, origin: nn.Module) -> None:
        super().__init__()
        for name, child in origin.named_children():
            self.add_module(name, child)
        self.train(origin.training)
        self._origin = (origin,)  # in a tuple: its children are registered here

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_origin" not in self.__dict__:  # a copy in the making
                raise
            return getattr(self._origin[0], name)

    def restored(self) -> nn.Module:
        """The module that this one stands for, with the children as they are now."""
        origin = self._origin[0]
        for name, child in self.named_children():
            setattr(origin, name, child)
        return origin.train(self.training)


class FeedForward(Whole):
    """``down(activation(up(x)))``, the activation a function: one operator but in
    training mode, where the module's own code runs."""

    def __init__(self, origin: nn.Module, up: str, activation: str, down: str) -> None:
        super().__init__(origin)
        self._up, self._activation, self._down = up, activation, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.restored().forward(x)  # type: ignore[no-any-return]
        up, down = self._modules[self._up], self._modules[self._down]
        assert isinstance(up, QuantLinear)
        assert isinstance(down, QuantLinear)
        return _mlp(x, up, self._activation, down)


class ResidualNorm(Whole):
    """``norm(dropout(dense(x)) + residual)`` as one operator: BERT's output blocks.

    In training mode, or where a gradient is asked for, its children run one by one.
    """

    def __init__(self, origin: nn.Module, dense: str, norm: str, dropout: str | None, names: tuple[str, str]) -> None:
        super().__init__(origin)
        self._dense, self._norm, self._dropout, self._names = dense, norm, dropout, names

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        x, residual = (*args, *(kwargs[name] for name in self._names[len(args) :]))
        dense, norm = self._modules[self._dense], self._modules[self._norm]
        assert isinstance(dense, QuantLinear)
        assert isinstance(norm, nn.LayerNorm)
        if self.training:
            y = dense(x)
            if self._dropout is not None:
                y = self._modules[self._dropout](y)
            return norm(y + residual)
        if residual.dtype != x.dtype:
            return norm(dense(x) + residual)
        after = (residual, norm.weight, norm.bias, norm.eps)
        if dense._up is not None:
            return dense._with_up(x, *after)
        return ops.linear(x, dense.tiled, dense.bias, dense.out_features, *after, codebook=dense.codebook)


class QuantEmbedding(nn.Module):
    """An embedding whose rows stay in codes: a look-up dequantizes what it reads.

    Buffers: ``codes``, uint8 (N, D), each code + 128, and ``scale``, float32
    (N,); or, below eight bits and where a linear layer shares the weight, ``tiled``
    and ``codebook`` as that layer has them.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        buffers: dict[str, torch.Tensor],
        config: Config,
        dtype: torch.dtype = torch.float32,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.config = config
        self.dtype = dtype
        self.padding_idx = padding_idx
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    @property
    def weight(self) -> torch.Tensor:
        """Shape and dtype of the weight before, on the meta device: no data."""
        return torch.empty((self.num_embeddings, self.embedding_dim), dtype=self.dtype, device="meta")

    def dequantize(self) -> torch.Tensor:
        """The weight that the codes stand for, (N, D)."""
        if "tiled" in self._buffers:
            codebook = self._buffers.get("codebook")
            return ops.dequantize(self.tiled, self.embedding_dim, self.num_embeddings, codebook).to(self.dtype)
        return ((self.codes.float() - 128) * self.scale[:, None]).to(self.dtype)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of that weight, float32."""
        if "tiled" in self._buffers:
            codebook = self._buffers.get("codebook")
            return ops.embedding_tiled(indices, self.tiled, self.embedding_dim, self.num_embeddings, codebook)
        return ops.embedding(indices, self.codes, self.scale)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.rows(indices).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.config}"
