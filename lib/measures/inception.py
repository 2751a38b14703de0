"""Inception, the network of FID and IS, as clean-fid runs it: its TorchScript file, its resizing, its call.

    network = inception.Inception("clean")
    features, probabilities = network(images)       # uint8 (n, C, H, W) -> (n, 2048), (n, 1008)

A mode says how images come to 299 x 299 pixels, and moves FID by some points: name it beside every number.
`clean`: bicubic with antialiasing, in floats (Parmar, Zhang and Zhu, CVPR 2022), what is reported today.
`legacy_tensorflow`: bilinear without antialiasing, inside the network, as the three papers' codes measured (TTUR's
fid.py, improved-gan's inception score). clean-fid's third, legacy_pytorch, is another port, with a file of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib import ROOT, params
from lib.data import DataError

FILE = "inception-2015-12-05.pt"  # 96 MB, NVIDIA's TorchScript of TensorFlow's Inception of that day
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # as k-diffusion and others pin it
BATCH = 100  # images at once: 0.5 GB of memory


def weights(folder: Path | None = None) -> Path:
    """The network's file in `folder` (None: data/raw), downloaded where it is missing; verified each time.

    Raises: DataError where it is damaged or another file, or missing and not to be downloaded.
    """
    path = (folder or ROOT / "data" / "raw") / FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{FILE}.{os.getpid()}.part")  # another stage may be at the same work
        try:
            with urllib.request.urlopen(URL, timeout=60) as response, unfinished.open("wb") as f:
                shutil.copyfileobj(response, f)
            _verify(unfinished)
            unfinished.replace(path)
        except OSError as e:
            cause = " ".join(str(e).split())[:120]
            raise DataError(
                f"{path} is missing and not to be downloaded ({cause}): put the file there, from {URL}, or do "
                "without FID: empty scales.<profile>.inception"
            ) from e
        finally:
            unfinished.unlink(missing_ok=True)
    _verify(path)
    return path


def _verify(path: Path) -> None:
    with path.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != SHA256:
        raise DataError(
            f"{path} is damaged or another file: sha256 {found[:12]}..., expected {SHA256[:12]}...; remove "
            f"it, and it is fetched again, or put the file of {URL} in its place"
        )


class Inception:
    """The network in one mode of clean-fid's, in evaluation mode and fp32.

    Args:
        mode: of lib.params.INCEPTION.   device: clean-fid's default is CUDA; ours is what the caller has.
        folder: where the network's file is, or will be; None: data/raw.
    Raises: ValueError for another mode; DataError as `weights` does.
    """

    def __init__(self, mode: str, device="cpu", folder: Path | None = None):
        if mode not in params.INCEPTION:
            raise ValueError(f"mode {mode!r}: expected one of {', '.join(params.INCEPTION)}")
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        path = weights(folder)
        self.mode, self.device, self.resize = mode, device, build_resizer(mode)
        self.network = InceptionV3W(str(path.parent), download=False, resize_inside=mode == "legacy_tensorflow")
        self.network = self.network.to(device).eval()
        self.key = f"{mode} {SHA256}"  # all that features depend on, beside the images

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, 2048) and class probabilities (n, 1008) of uint8 images (n, C, H, W); C = 1 is seen as RGB grey.

        Probabilities leave out the last layer's bias, as improved-gan's inception score and all that follow it do.
        """
        features, probabilities = [], []
        for part in x.split(BATCH):
            h = self.network(self._resized(part).to(self.device))
            features.append(h.cpu())
            probabilities.append((h @ self.network.base.output.weight.T).softmax(1).cpu())
        return torch.cat(features).numpy(), torch.cat(probabilities).double().numpy()

    def _resized(self, x: Tensor) -> Tensor:
        """What clean-fid gives to the network, float in [0, 255]: (B, 3, 299, 299); in TensorFlow's mode (B, 3, H, W)."""
        images = x.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # PIL lets go of Python's lock
            resized = np.stack(list(pool.map(self.resize, images)))
        return torch.from_numpy(resized).permute(0, 3, 1, 2).float()
