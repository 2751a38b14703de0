"""What the tests share: small networks and tensors, a copy of the project that ran the smoke pipeline."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib import ROOT, data, inits, networks

torch.set_num_threads(1)
COMPILER = any(map(shutil.which, ("g++", "c++", "clang++")))        # without one, torch.compile leaves a network as it is


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


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
    return data.Split("mnist", x, y, x[:16], y[:16], x[:16], y[:16], inits.ClassGaussians.fit(data.to_range(x), y))


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A copy of the project in which `make pipeline` ran with profile smoke: (folder, environment, first run's output)."""
    home = tmp_path_factory.mktemp("pipeline") / "project"
    skip = shutil.ignore_patterns(".git", ".venv", "artifacts", "scratch", "__pycache__", "*.egg-info", "cache", "tmp",
                                  ".pytest_cache", "raw", "dvc.lock")        # another profile's, which DVC would read each time
    shutil.copytree(ROOT, home, ignore=skip)
    params = home / "params.yaml"
    params.write_text(params.read_text().replace("profile: quick ", "profile: smoke ", 1))
    env = {**os.environ, "PYTHONPATH": str(home), "EBM_PROFILE": "smoke", "DVC_NO_ANALYTICS": "1",
           "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-m", "dvc", "config", "core.no_scm", "true"], cwd=home, env=env, check=True)
    done = subprocess.run(["make", "pipeline", f"PY={sys.executable}"], cwd=home, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return home, env, done.stdout
