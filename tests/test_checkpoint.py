"""Checkpoints survive torn files and full disks."""
import os

import pytest
import torch

from lib import checkpoint


def test_newest_two_are_kept_and_the_newest_is_loaded(tmp_path):
    for i in (1, 2, 3):
        checkpoint.save({"i": i}, tmp_path, i)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00000002.pt", "00000003.pt"]
    assert checkpoint.latest(tmp_path) == {"i": 3}


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_corrupt_checkpoint_falls_back_to_the_one_before(tmp_path, damage, capsys):
    for i in (1, 2):
        checkpoint.save({"w": torch.full((100,), float(i))}, tmp_path, i)
    path = tmp_path / "00000002.pt"
    path.write_bytes(damage(path.read_bytes()))
    assert checkpoint.latest(tmp_path)["w"][0] == 1
    assert "using the one before" in capsys.readouterr().err and path.with_suffix(".corrupt").exists()


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    checkpoint.save_atomic({"i": 1}, tmp_path / "a.pt")

    def full_disk(fd):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="earlier checkpoints are intact. Free disk space"):
        checkpoint.save_atomic({"i": 2}, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True) == {"i": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)
    torch.save(Evil(), tmp_path / "00000001.pt")
    assert checkpoint.latest(tmp_path) is None and not (tmp_path / "hacked").exists()
