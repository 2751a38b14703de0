"""Set up .venv with the versions that the results were made with, on any system:

    python -m lib.environment           what `make` does first; nothing where that is done already

Needs only the standard library. It prints the Python to go on with: `.venv/bin/python -m lib.pipeline` (on Windows
`.venv\\Scripts\\python -m lib.pipeline`) is `make repro`, `... -m pytest` is `make test`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from lib import ROOT, files

SUPPORTED = (3, 11, 5), (3, 14)  # from, to: what the pinned versions have wheels for
FILES = ("requirements.txt", "pyproject.toml")


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def refusal(version: tuple[int, ...]) -> str | None:
    """Why this Python, (3, 12, 1) say, will not do; None where it will."""
    first, last = SUPPORTED
    if first <= version and version[:2] <= last:
        return None
    name, newest = (".".join(map(str, v)) for v in (version, last))
    return (
        f"Python {name}: expected {'.'.join(map(str, first))} to {newest}; choose one with make PYTHON=python{newest} ..., "
        f"or python{newest} -m lib.environment"
    )


def set_up(folder: Path) -> None:
    """Create the environment in `folder`, or bring it up to date. Raises: subprocess.CalledProcessError where pip fails."""
    ready = folder / ".ready"
    wanted = hashlib.sha256(b"".join((ROOT / f).read_bytes() for f in FILES)).hexdigest()
    if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
        return
    if not python_of(folder).exists():
        venv.create(folder, with_pip=True)
    pip = [str(python_of(folder)), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements.txt")], check=True)
    # compat: a line in a .pth file, so that an empty folder `lib` where somebody works does not stand before the package
    subprocess.run([*pip, "--no-deps", "--config-settings", "editable_mode=compat", "-e", str(ROOT)], check=True)
    files.write_text(ready, wanted)


@files.command(ValueError)
def main() -> None:
    folder = ROOT / ".venv"
    if reason := refusal(tuple(sys.version_info[:3])):
        raise ValueError(reason)
    files.writable(ROOT)
    try:
        set_up(folder)
    except subprocess.CalledProcessError as e:
        raise ValueError(
            f"pip ended with status {e.returncode}, for the reason above: correct it and run the same command again"
        ) from None
    print(python_of(folder).relative_to(ROOT).as_posix())


if __name__ == "__main__":
    main()
