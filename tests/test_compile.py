"""A chain through torch.compile: the same chain to rounding, the same bits twice, and what it is where nothing compiles."""

import getpass
import os
import re
import tempfile
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import COMPILER
from torch.utils import cpp_extension

from lib import pipeline
from lib.bench import speed as bench
from lib.parts import networks, samplers
from lib.parts.energy import Energy, resolve_precision

# What torch.compile keeps on disk at one processor's capability gives NaN at another's, and its key does not tell them apart
# (torch 2.13, ATEN_CPU_CAPABILITY=avx2 on a processor with AVX-512): a folder for each.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    str(
        Path(tempfile.gettempdir()) / "-".join(("torchinductor", getpass.getuser(), torch.backends.cpu.get_cpu_capability()))
    ),
)


@pytest.fixture(scope="module")
def compiler():
    """A compiler that compiles: tried once, on two layers. A folder for temporary files with a space is too much, say."""
    if not COMPILER:
        pytest.skip("no C++ compiler here")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        works = compiles()
    if not works:
        pytest.skip(next(str(w.message) for w in said if str(w.message).startswith("torch.compile failed")))


def compiles() -> bool:
    """Whether two small layers run compiled, here and now."""
    torch.compiler.reset()
    f = networks.Compiled(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Sigmoid()))
    f(torch.ones(2, 3))
    return f.ran


@pytest.fixture(scope="module")
def split():
    return bench.images(8, 100)


@pytest.fixture
def refused(monkeypatch):
    """A torch.compile that finds no compiler; like torch's own, it says so at the first call."""

    def refuse(model, **_):
        def forward(x):
            raise RuntimeError("\nInvalidCxxCompiler: no working C++ compiler found\nand more")

        return forward

    monkeypatch.setattr(torch, "compile", refuse)


def trainer(split, **changes):
    run = bench.configuration("jempp-m5", "cpu", batch=8, widen=1, passes=2, precision="fp32", **changes)
    return bench.trainer(run, split, torch.device("cpu"))


def test_a_compiled_chain_is_the_chain_to_rounding_and_itself_to_the_bit(split, compiler):
    plain, ours, twin = trainer(split, compile=False), trainer(split, compile=True), trainer(split, compile=True)
    x0 = split.gaussians.sample(8, torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it compiled
        assert not bench.compiled(ours)  # nothing has run
        x = ours.chain(x0)
    assert bench.compiled(ours) and not bench.compiled(plain) and (x - x0).abs().max() > 1e-3
    torch.testing.assert_close(x, plain.chain(x0), rtol=1e-3, atol=1e-4)
    assert torch.equal(x, twin.chain(x0))
    for a, b in zip(ours.model.buffers(), plain.model.buffers()):  # running statistics move alike
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad for p in ours.model.parameters())


@pytest.mark.skipif(os.name != "posix", reason="torch quotes the path on Windows")
def test_libraries_in_a_folder_with_a_space_are_linked(tmp_path, compiler, monkeypatch):
    libraries = tmp_path / "a b\u00e9"
    libraries.symlink_to(cpp_extension.TORCH_LIB_PATH)
    monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", str(libraries))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # nothing is there yet: it compiles
    for _ in range(2):  # the link is made, then found
        assert compiles()
        link = Path(cpp_extension.TORCH_LIB_PATH)
        assert " " not in str(link) and link.samefile(libraries)
        monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", str(libraries))


def test_without_batch_norm_nothing_is_compiled(split):
    t = bench.trainer(
        bench.configuration("jem", "cpu", batch=8, widen=1, passes=2, compile=True), split, torch.device("cpu")
    )
    assert t.fused is t.energy


def test_where_nothing_compiles_the_network_runs_as_it_is(wrn, rng, refused):
    E, x = Energy(wrn, forward=networks.Compiled(wrn)), torch.rand(4, 1, 8, 8, generator=rng).double() * 2 - 1
    with pytest.warns(UserWarning, match=r"torch.compile failed \(InvalidCxxCompiler.*runs as it is"):
        found = samplers.last(samplers.Proximal(K=2, alpha=1.0, epsilon=1.0)(E, x))
    assert torch.equal(found, samplers.last(samplers.Proximal(K=2, alpha=1.0, epsilon=1.0)(Energy(wrn), x)))
    assert not E.forward.ran
    with pytest.raises(RuntimeError, match="channels"):  # what is wrong with the images says so itself
        E(torch.rand(4, 3, 8, 8).double())


@pytest.mark.filterwarnings("ignore:torch.compile failed")
def test_a_measurement_calls_compiled_what_was(split, refused, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setitem(bench.SIZES, "cpu", {"depth": 10, "widen": 1})
    monkeypatch.setattr(bench, "configuration", partial(bench.configuration, batch=8, passes=2))
    assert bench.configuration(bench.MAIN, "cpu").compile
    assert [r["compiled"] for r in bench.against_plain(["softmax", bench.MAIN], split, cpu, 2).values()] == [False, False]
    assert list(bench.launches(split, cpu, 2)) == ["eager", "eager, fp32"]
    monkeypatch.setattr(torch, "compile", lambda model, **_: model.forward)  # one that does what it is asked to
    assert bench.against_plain([bench.MAIN], split, cpu, 2)[bench.MAIN]["compiled"]
    assert list(bench.launches(split, cpu, 2)) == ["eager", "compiled", "eager, fp32"]


@pytest.mark.parametrize(
    "instructions, more, ends",
    [
        ("AVX512", True, ""),
        ("AVX2", True, "-avx2"),
        ("AVX2", False, ""),
        ("DEFAULT", True, "-default"),
        ("DEFAULT", False, ""),
        ("SVE256", True, ""),
    ],
)
def test_a_measurement_names_instructions_that_the_processor_could_better(instructions, more, ends, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    for asked in ("_is_avx2_supported", "_is_avx512_supported"):
        monkeypatch.setattr(torch.cpu, asked, lambda: more)
    found = bench.machine(torch.device("cpu"))
    assert re.fullmatch(rf"[a-z0-9-]+-{pipeline.cores()}{ends}", found["slug"])
    assert found["instructions"] == instructions and found["count"] == pipeline.cores()
    assert found["precision"] == resolve_precision("auto", torch.device("cpu"))


def test_frozen_parameters_ask_for_gradients_again(wrn):
    wrn.head.bias.requires_grad_(False)
    with pytest.raises(KeyError), networks.frozen(wrn):
        assert not any(p.requires_grad for p in wrn.parameters())
        raise KeyError
    assert [n for n, p in wrn.named_parameters() if not p.requires_grad] == ["head.bias"]
