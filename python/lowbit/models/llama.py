"""The small Llamas of llama2.c (A. Karpathy; H. Touvron et al., "Llama 2", 2023), such as stories260K."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Llama", "load_llama"]


class Llama(nn.Module):
    """A language model under the names of llama2.c's checkpoints, its output tied to the embedding.

    Parameters
    ----------
    config : dict
        ``dim``, ``hidden_dim``, ``n_layers``, ``n_heads``, ``n_kv_heads``, ``vocab_size``, ``rms_eps``, ``rope_theta``.

    Examples
    --------
    >>> import torch
    >>> from lowbit.models.llama import Llama
    >>> sizes = dict(dim=16, hidden_dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=11)
    >>> Llama({**sizes, "rms_eps": 1e-5, "rope_theta": 1e4})(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 11])
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dim, vocabulary = config["dim"], config["vocab_size"]
        self.tok_embeddings = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(_Block(config) for _ in range(config["n_layers"]))
        self.norm, self.output = nn.RMSNorm(dim, config["rms_eps"]), nn.Linear(dim, vocabulary, bias=False)
        self.output.weight = self.tok_embeddings.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (N, T, vocabulary) of what follows each of tokens (N, T)."""
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dim, eps = config["dim"], config["rms_eps"]
        self.attention, self.feed_forward = _Attention(config), _FeedForward(dim, config["hidden_dim"])
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dim, self.theta = config["dim"], config["rope_theta"]
        self.size = dim // config["n_heads"]
        few = config["n_kv_heads"] * self.size
        self.wq, self.wo = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wk, self.wv = nn.Linear(dim, few, bias=False), nn.Linear(dim, few, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        y = functional.scaled_dot_product_attention(
            self._turned(q), self._turned(k), v, is_causal=True, enable_gqa=True
        )
        return self.wo(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        """Positions into pairs of neighbours, (..., T, size)."""
        frequencies = self.theta ** (-torch.arange(0, self.size, 2) / self.size)
        angle = torch.arange(x.shape[-2])[:, None] * frequencies
        a, b, cos, sin = x[..., ::2], x[..., 1::2], angle.cos(), angle.sin()
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (
            nn.Linear(k, n, bias=False) for k, n in ((dim, hidden), (hidden, dim), (dim, hidden))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


def load_llama(folder: Path) -> Llama:
    """The model of a folder with ``config.json`` and ``stories260K.safetensors``, in evaluation mode.

    Raises
    ------
    OSError
        A file is not there.
    """
    from safetensors.torch import load_file

    model = Llama(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "stories260K.safetensors")
    model.load_state_dict({**weights, "output.weight": weights["tok_embeddings.weight"]})
    return model.eval().requires_grad_(False)
