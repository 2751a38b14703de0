"""What the tests share: small networks and tensors, a copy of the project that ran the smoke pipeline."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib import ROOT, data, params, sources
from lib import pipeline as pipeline_
from lib.parts import networks, starts

torch.set_num_threads(1)
COMPILER = any(map(shutil.which, ("g++", "c++", "clang++")))  # without one, torch.compile leaves a network as it is


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def split():
    """The smoke profile's primary data: 160 images of 8x8."""
    return sources.prepare(params.data("smoke", "primary"))


@pytest.fixture
def wrn():
    """WRN-10-1 for 8x8 grey images, in double precision: its first layer is linear."""
    torch.manual_seed(0)
    return networks.WideResNet(10, 1, 10, 1, "none").double()


@pytest.fixture
def tiny_split():
    """64 random 8x8 images of two classes, the second brighter."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 2
    x = (torch.randint(0, 128, (64, 1, 8, 8), generator=g) + 100 * y[:, None, None, None]).to(torch.uint8)
    return data.Split("mnist", x, y, x[:16], y[:16], x[:16], y[:16], starts.ClassGaussians.fit(data.to_range(x), y))


def move_root(patch, home: Path) -> None:
    """Every module of lib reads and writes under `home` instead of under the project, whose params.yaml and data stay
    its own."""
    import lib.models  # noqa: F401  # looks for trained runs, also where a test has imported only its callers

    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "dvc.yaml", home)
    for name, module in list(sys.modules.items()):
        if name.startswith("lib.") and name not in ("lib.params", "lib.sources") and hasattr(module, "ROOT"):
            patch.setattr(module, "ROOT", home)


def pytest_xdist_auto_num_workers(config):
    """`-n auto`: one worker for each core that may be used, four at most; each is a process of half a GB."""
    return min(4, pipeline_.jobs())


def pytest_collection_modifyitems(items):
    """The files that need the smoke pipeline first: it takes longest."""
    slow = {item.path for item in items if "pipeline" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in slow)


def copy_of_the_project(home: Path) -> dict[str, str]:
    """Copies what git would bring, and what is not committed yet, to `home`; returns the environment of a shell there."""
    skip = shutil.ignore_patterns(
        ".git",
        ".venv",
        "artifacts",
        "scratch",
        "__pycache__",
        "*.egg-info",
        "cache",
        "tmp",
        ".pytest_cache",
        "raw",
        "smoke",
        "book",
        "dvc.lock",
        "config.local",
    )  # the lock is quick's
    shutil.copytree(ROOT, home, ignore=skip)
    params = home / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("profile: quick ", "profile: smoke ", 1), encoding="utf-8")
    return {
        **os.environ,
        "PYTHONPATH": str(home),
        "EBM_PROFILE": "smoke",
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


# All that the smoke pipeline trains and measures, and three notebooks: nbval runs all of them, so papermill and DVC need
# not, each of which would cost ten seconds.
STAGES = ("data", "train@*", "evaluate@*", "apply@*", "notebook@00*", "notebook@01*", "notebook@05*")


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A copy of the project, an archive without .git, in which STAGES ran with profile smoke: (folder, environment,
    the runner's output)."""
    home = tmp_path_factory.mktemp("pipeline") / "project"
    env = copy_of_the_project(home)
    done = subprocess.run(
        [sys.executable, "-m", "lib.pipeline", *STAGES], cwd=home, env=env, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return home, env, done.stdout
