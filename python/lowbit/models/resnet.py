"""The ResNets of CIFAR-10 (K. He et al., "Deep residual learning for image recognition", CVPR 2016, 4.2)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

__all__ = ["MEAN", "STD", "ResNet", "load_resnet", "normalized"]

#: Of the images' channels, as the public checkpoints were trained.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ResNet(nn.Module):
    """``6 depth + 2`` layers, shortcuts without weights (option A), under the names of Y. Idelbayev's checkpoints.

    Parameters
    ----------
    depth : int
        Blocks of each of the three stages: 3 for ResNet-20, 5 for 32, 7 for 44.
    classes : int

    Examples
    --------
    >>> import torch
    >>> from lowbit.models.resnet import ResNet
    >>> ResNet(3).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, depth: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(3, 16), nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, depth)
        self.layer2 = _stage(16, 32, depth)
        self.layer3 = _stage(32, 64, depth)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions, and what they are given added to what they make."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.pad = (1, 0) if before == after else (2, (after - before) // 2)
        self.conv1, self.bn1 = _conv3x3(before, after, self.stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = _conv3x3(after, after), nn.BatchNorm2d(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(x + y)


def _conv3x3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, 1, bias=False)


def _stage(before: int, after: int, depth: int) -> nn.Sequential:
    return nn.Sequential(Block(before, after), *(Block(after, after) for _ in range(depth - 1)))


def load_resnet(path: Path | str) -> ResNet:
    """The network of a safetensors file, in evaluation mode, its depth by the file's names.

    Raises
    ------
    ValueError
        Another network's tensors.
    """
    from safetensors.torch import load_file

    state = {name.removeprefix("module."): tensor for name, tensor in load_file(path).items()}
    depth = sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in state)
    classes = state.get("linear.weight", torch.empty(10, 0)).shape[0]
    model = ResNet(max(depth, 1), classes).eval().requires_grad_(False)
    try:
        told = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: no ResNet of CIFAR-10: {error}") from None
    missing = [name for name in told.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or told.unexpected_keys:
        odd = missing[:1] or told.unexpected_keys[:1]
        raise ValueError(f"{path}: no ResNet of CIFAR-10: {odd[0]} is {'missing' if missing else 'not one of its own'}")
    return model


def normalized(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 32, 32, 3) as what the network takes, float32 (n, 3, 32, 32)."""
    x = (images.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return x.permute(0, 3, 1, 2).contiguous()
