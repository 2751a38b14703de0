"""The networks: an MLP for two dimensions, the JEM family's WideResNet, AT-EBM's ResNet-50 and discriminator.

Every network is `forward(x) = rest(first(x))`, because PYLD treats the first layer apart (JEM++ Eq. 11),
and has `features(x)`, the activations before the last linear layer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from lib.parts.cell import Cell, ConfigError, Count

Norm = Literal["batch", "frozen", "none"]


class Network(nn.Module):
    """first -> body -> head; subclasses set the three."""

    first: nn.Module
    body: nn.Module
    head: nn.Linear
    frozen_norm = False  # batch norm in evaluation mode throughout: an affine map per channel, never a statistic

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        for m in self.modules():
            if self.frozen_norm and isinstance(m, nn.BatchNorm2d):
                m.eval()
        return self

    def rest(self, h: Tensor) -> Tensor:
        """Logits (B, C) from the first layer's output."""
        return self.head(self.body(h))

    def features(self, x: Tensor) -> Tensor:
        """Penultimate activations (B, F)."""
        return self.body(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x))


class MLP(Network):
    """Fully connected network on R^d with smooth activations (an energy wants a gradient everywhere)."""

    def __init__(self, inputs: int = 2, classes: int = 1, width: int = 64, depth: int = 3):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        hidden = [m for _ in range(depth - 1) for m in (nn.SiLU(), nn.Linear(width, width))]
        self.body = nn.Sequential(*hidden, nn.SiLU())
        self.head = nn.Linear(width, classes)


class Block(nn.Module):
    """Pre-activation residual block: norm, LeakyReLU 0.2, 3x3 convolution, twice."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride)  # no norm
        # In place after a norm, whose output nothing else reads; without one it would overwrite the shortcut's input.
        self.inplace = not isinstance(self.norm1, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.norm1(x), 0.2, self.inplace))
        return self.conv2(F.leaky_relu(self.norm2(h), 0.2, self.inplace)) + self.shortcut(x)


def check_depth(depth: int) -> int:
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"WideResNet depth {depth}: expected 6n + 4 with n >= 1 (10, 16, 22, 28, ...)")
    return depth


class WideResNet(Network):
    """WideResNet-depth-widen as the JEM family uses it: LeakyReLU 0.2, convolution biases, no dropout.

    Args:
        depth: 6n + 4 (10, 16, 28, ...).   widen: width factor k.   classes: logits.
        channels: of the input images (B, channels, H, W); any H = W >= 8 works (global pooling).
        norm: 'batch' (JEM++, SADA-JEM), 'none' (JEM), or 'frozen': in evaluation mode throughout.
    Raises: ValueError for a depth that is not 6n + 4 or an unknown norm.
    """

    def __init__(self, depth: int = 28, widen: int = 10, classes: int = 10, channels: int = 3, norm: str = "batch"):
        super().__init__()
        check_depth(depth)
        norms: dict[str, Callable[[int], nn.Module]] = {  # channels -> layer
            "batch": nn.BatchNorm2d,
            "frozen": nn.BatchNorm2d,
            "none": lambda channels: nn.Identity(),
        }
        if norm not in norms:
            raise ValueError(f"norm {norm!r}: expected one of {sorted(norms)}")
        widths, n = (16, 16 * widen, 32 * widen, 64 * widen), (depth - 4) // 6
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        blocks = [
            Block(widths[s] if i == 0 else widths[s + 1], widths[s + 1], 2 if s > 0 and i == 0 else 1, norms[norm])
            for s in range(3)
            for i in range(n)
        ]
        self.body = nn.Sequential(
            *blocks, norms[norm](widths[3]), nn.LeakyReLU(0.2, inplace=norm != "none"), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(widths[3], classes)
        self.frozen_norm = norm == "frozen"
        self.train()


class DownBlock(nn.Module):
    """StarGAN v2's residual block without norm: LeakyReLU 0.2, 3x3 convolution, twice, halving the image between;
    divided by sqrt 2, so that variance stays."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(self.conv1(F.leaky_relu(x, 0.2)), 2)
        # pooling and a 1x1 convolution commute; pooled first, the convolution costs a quarter
        return (self.conv2(F.leaky_relu(h, 0.2)) + self.shortcut(F.avg_pool2d(x, 2))) / 2**0.5


class Discriminator(Network):
    """StarGAN v2's discriminator (Choi et al. 2020), AT-EBM's network at 256 pixels: blocks halve the image down to
    4x4, the width doubles up to 512. At 16 pixels, two blocks: the same network, small.

    Args:
        size: pixels a side, a power of two >= 8.   width: channels after the first layer (published: 64 at 256 px).
    """

    def __init__(self, size: int = 256, width: int = 64, classes: int = 1, channels: int = 3, widest: int = 512):
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ConfigError(f"discriminator for {size} pixels: expected a power of two, at least 8")
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        blocks = []
        while size > 4:
            blocks.append(DownBlock(width, min(2 * width, widest)))
            width, size = min(2 * width, widest), size // 2
        self.body = nn.Sequential(*blocks, nn.LeakyReLU(0.2), nn.Conv2d(width, width, 4), nn.LeakyReLU(0.2), nn.Flatten())
        self.head = nn.Linear(width, classes)


class ResNet50(Network):
    """torchvision's ResNet-50 with a 3x3 first layer and no first pooling: AT-EBM's network for 32x32 images.

    norm: 'batch', or 'frozen', as AT-EBM has it: in evaluation mode throughout.
    """

    def __init__(self, classes: int = 1, channels: int = 3, norm: str = "frozen"):
        super().__init__()
        from lib import vision

        whole = vision.torchvision.models.resnet50(num_classes=classes)
        self.first = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.body = nn.Sequential(
            whole.bn1,
            whole.relu,
            whole.layer1,
            whole.layer2,
            whole.layer3,
            whole.layer4,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = whole.fc
        self.frozen_norm = norm == "frozen"
        self.train()


STATISTICS = {  # (mean, standard deviation) of each channel in [0, 1], as AT-EBM's code has them
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Normalise(nn.Module):
    """(x - mean) / deviation of each channel of images (B, 3, H, W) in [0, 1]. It has no state: nothing of it is learned,
    saved, or averaged over processes."""

    def __init__(self, of: str):
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(c - m) / s for c, m, s in zip(x.unbind(1), *STATISTICS[self.of], strict=True)], 1)


class _Cell(Cell):
    logits: Count | None = None  # None: one per class; 1: E(x) = -f(x), which has no classes (AT-EBM)
    # colour images in [0, 1] by this set's mean and standard deviation, in front of the first layer; None: as they are
    normalise: Literal["cifar10", "imagenet"] | None = None

    def network(self, outputs: int, channels: int, size: int) -> Network:
        """Of so many logits, for images (channels, size, size)."""
        raise NotImplementedError

    def build(self, classes: int, channels: int, size: int = 32) -> Network:
        """The network for images (channels, size, size), with fresh weights from torch's global random numbers.
        Raises: ValueError for what a network cannot be."""
        model = self.network(self.logits or classes, channels, size)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # documented, but not annotated by torch
        if self.normalise:
            if channels != 3:
                raise ConfigError(
                    f"normalise: {self.normalise} for images of {channels} channels; expected 3, or normalise: null"
                )
            model.first = nn.Sequential(Normalise(self.normalise), model.first)
        return model


class WideResNetCell(_Cell):
    kind: Literal["wrn"] = "wrn"
    depth: Annotated[int, AfterValidator(check_depth)]
    widen: Count
    norm: Norm

    def network(self, outputs: int, channels: int, size: int) -> Network:
        return WideResNet(self.depth, self.widen, outputs, channels, self.norm)


class DiscriminatorCell(_Cell):
    kind: Literal["discriminator"] = "discriminator"
    width: Count  # channels after the first layer

    def network(self, outputs: int, channels: int, size: int) -> Network:
        return Discriminator(size, self.width, outputs, channels)


class ResNet50Cell(_Cell):
    kind: Literal["resnet50"] = "resnet50"
    norm: Literal["batch", "frozen"]

    def network(self, outputs: int, channels: int, size: int) -> Network:
        return ResNet50(outputs, channels, self.norm)


Networks = Annotated[WideResNetCell | DiscriminatorCell | ResNet50Cell, Field(discriminator="kind")]


@contextlib.contextmanager
def batch_statistics(model: nn.Module) -> Iterator[nn.Module]:
    """Batch norm by the batch's own statistics, running ones untouched: how JEM++ samples after training. Where it is
    frozen, it stays so."""
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not getattr(model, "frozen_norm", False)]
    before = [(m.training, m.track_running_stats) for m in layers]
    for m in layers:  # torch then normalises by the batch and writes nothing back
        m.training, m.track_running_stats = True, False
    try:
        yield model
    finally:
        for m, (training, tracking) in zip(layers, before, strict=True):
            m.training, m.track_running_stats = training, tracking


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Batch norm by its running statistics, for as long as it takes."""
    before = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(before)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model's parameters ask for no gradient: only the images' is wanted."""
    wanted = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for p, w in zip(model.parameters(), wanted, strict=True):
            p.requires_grad_(w)


class Compiled:
    """The model through torch.compile, which fuses what lies between two convolutions: norm, activation, casts.

    Chains call it with the parameters `frozen`: a compiled backward pass computes the gradients of all that asks for one.
    It cannot be differentiated twice, and differs from the model by rounding. Where nothing can be compiled (no C++
    compiler, say): one warning, and the model as it is. `ran` says whether compiled code has run.
    """

    def __init__(self, model: nn.Module):
        _without_spaces()
        self.model, self.ran = model, False
        self.forward: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)  # batches of one size

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, C) of x (B, C, H, W)."""
        try:
            logits = self.forward(x)
        except RuntimeError as e:  # also what is wrong with the model or x, which then says so itself
            if self.forward is self.model:
                raise
            self.forward, self.ran = self.model, False
            warnings.warn(
                f"torch.compile failed ({str(e).strip().splitlines()[0]}): the network runs as it is", stacklevel=2
            )
            return self.model(x)
        self.ran = self.forward is not self.model
        return logits


def _without_spaces() -> None:
    """Let torch.compile link where the path of torch's libraries holds a space (the project's folder, say).

    torch 2.13 writes that path into the linker's command without quotes. A link to it in torch's own cache, whose path
    depends on the libraries' alone, since compiled code is found again by the whole command, stands in for it.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch.utils import cpp_extension

    libraries = cpp_extension.TORCH_LIB_PATH
    if os.name != "posix" or not re.search(r"\s", libraries):  # on Windows, torch quotes it
        return
    with contextlib.suppress(OSError):  # where nothing can be cached, torch.compile itself says so
        link = Path(cache_dir()) / f"torch-{hashlib.sha256(os.fsencode(libraries)).hexdigest()[:16]}"
        with contextlib.suppress(FileExistsError):  # made before, or by another process
            link.symlink_to(libraries)
        cpp_extension.TORCH_LIB_PATH = str(link)


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
