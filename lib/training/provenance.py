"""What a result was made from, and on."""

from __future__ import annotations

import hashlib
import platform
import subprocess

import torch

from lib import ROOT, data, params
from lib.parts import networks
from lib.training import distributed
from lib.training.trainer import Trainer


def fingerprint(run: params.Run) -> str:
    """A hash of the configuration and the data: what a checkpoint may be resumed under."""
    split = data.path_of(run.profile, run.data)
    content = hashlib.sha256().hexdigest()
    if split.exists():
        with split.open("rb") as f:  # 25 GB, some: not all at once
            content = hashlib.file_digest(f, "sha256").hexdigest()
    return hashlib.sha256((run.model_dump_json() + content).encode()).hexdigest()[:16]


def provenance(run: params.Run, seed: int, trainer: Trainer, wall: float) -> dict:
    """What a result was made from and on."""
    d = trainer.device
    name = torch.cuda.get_device_name(d) if d.type == "cuda" else (platform.processor() or platform.machine())
    return {
        "run": run.name,
        "profile": run.profile,
        "seed": seed,
        "config": run.model_dump(mode="json"),
        "data": trainer.split.title,
        "commit": commit(),
        "device": f"{d.type}: {name}",
        "processes": distributed.world(),
        "threads": torch.get_num_threads(),
        "precision": trainer.precision,
        "parameters": networks.parameter_count(trainer.model),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.system(),
        "wall_seconds": round(wall, 1),
    }


def commit() -> str:
    """The commit of the code; '+' where lib/ or params.yaml differ from it; 'unknown' outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace"
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", "lib", "params.yaml"], cwd=ROOT, capture_output=True
        ).stdout.strip()
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+" if dirty else "") if head.returncode == 0 else "unknown"
