"""SAM and ASAM: known steps on a quadratic, an independent implementation, scaling, processes, batch norm."""

import contextlib

import pytest
import torch
from torch import nn

from lib import data, params, sources
from lib.parts import networks
from lib.parts.updates import SAM
from lib.training import Trainer

A = torch.diag(torch.tensor([4.0, 1.0, 0.25]))


def quadratic(rho, adaptive=False, lr=0.1):
    """theta in R^3, split over two parameters in two groups; L = theta' A theta / 2."""
    a, b = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([3.0]))
    sam = SAM(torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr), rho, adaptive)

    def closure():
        theta = torch.cat([a, b])
        loss = theta @ A @ theta / 2
        loss.backward()
        return loss.detach()

    return sam, closure, lambda: torch.cat([a, b]).detach()


def test_sam_on_a_quadratic():
    sam, closure, theta = quadratic(rho=0.5)
    before = theta()
    g = A @ before  # the norm runs over both groups
    worst = before + 0.5 * g / g.norm()
    loss, norm = sam.step(closure)
    assert torch.allclose(theta(), before - 0.1 * A @ worst, atol=1e-6)
    assert loss == before @ A @ before / 2 and norm == pytest.approx(g.norm().item()), (
        "the loss at theta, not at the worst point"
    )


def test_asam_on_a_quadratic():
    sam, closure, theta = quadratic(rho=0.5, adaptive=True)
    before = theta()
    g, T2 = A @ before, before.square()
    worst = before + 0.5 * T2 * g / (before.abs() * g).norm()
    assert ((worst - before) / before.abs()).norm() == pytest.approx(0.5), "on the ball |T^-1 e| = rho (SADA-JEM Eq. 8)"
    sam.step(closure)
    assert torch.allclose(theta(), before - 0.1 * A @ worst, atol=1e-6)


def test_the_texts_sign_step_leaves_asams_ball():
    """SADA-JEM's text steps by rho T sign(grad L): in n dimensions that is sqrt(n) rho long, not rho."""
    before = torch.tensor([1.0, -2.0, 3.0])
    e = 0.5 * before.abs() * (A @ before).sign()
    assert (e / before.abs()).norm() == pytest.approx(0.5 * 3**0.5)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_agrees_with_pytorch_optimizer(kind, adaptive):
    import pytorch_optimizer

    base = {
        "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}),
        "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 1e-3}),
    }[kind]
    x, y = torch.randn(16, 5, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
    ours, theirs = small(), small()
    a = SAM(base[0](ours.parameters(), **base[1]), 0.3, adaptive)
    # Kwon et al.'s T; that library adds 1e-12 to the norm, as we do
    b = pytorch_optimizer.SAM(theirs.parameters(), base_optimizer=base[0], rho=0.3, adaptive=adaptive, **base[1])

    def closure(model):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(6):
        a.step(lambda: closure(ours))
        b.zero_grad()
        closure(theirs)
        b.first_step(zero_grad=True)
        closure(theirs)
        b.second_step(zero_grad=True)
    start = torch.cat([p.flatten() for p in small().parameters()])
    p, q = (torch.cat([v.flatten() for v in m.parameters()]).detach() for m in (ours, theirs))
    assert (p - start).norm() > 0.1 and torch.allclose(p, q, atol=2e-6), (p - q).abs().max()


def test_gradient_scaling_changes_nothing():
    def run(scaler):
        sam, _, theta = quadratic(rho=0.5, lr=0.1)
        a, b = (g["params"][0] for g in sam.param_groups)

        def backward():
            sam.zero_grad()
            t = torch.cat([a, b])
            loss = t @ A @ t / 2
            (scaler.scale(loss) if scaler else loss).backward()

        backward()
        sam.ascend()
        backward()
        sam.restore()
        scaler.step(sam.base) if scaler else sam.base.step()
        return theta()

    scaled = run(torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert torch.allclose(scaled, run(None), atol=1e-6)


def test_an_error_in_the_second_pass_leaves_the_weights():
    sam, closure, theta = quadratic(rho=0.5)
    calls, before = [], theta()

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return closure()

    with pytest.raises(RuntimeError, match="out of memory"):
        sam.step(failing)
    assert torch.equal(theta(), before)


def test_a_radius_must_be_positive():
    with pytest.raises(ValueError, match="rho 0"):
        quadratic(rho=0)


def test_running_statistics_see_the_first_pass_only():
    torch.manual_seed(0)
    model, x = networks.WideResNet(10, 1, 3, 1), torch.randn(8, 1, 8, 8)
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    for keep in (True, False):
        before = int(norm.num_batches_tracked)
        second = (lambda: networks.batch_statistics(model)) if keep else contextlib.nullcontext
        SAM(torch.optim.SGD(model.parameters(), 0.1), 0.1, second_pass=second).step(
            lambda: model(x).square().sum().backward()
        )
        assert int(norm.num_batches_tracked) - before == (1 if keep else 2)


def test_a_sada_update_uses_one_set_of_negatives_and_two_streams():
    split = sources.prepare(params.data("smoke", "primary"))
    trainer = Trainer(params.run("sada-k5", "smoke"), split, 0)
    drawn, seen, sample, forward = [], [], trainer.sample, trainer.fused.logits
    trainer.sample = lambda real: drawn.append(real) or sample(real)
    trainer.fused.logits = lambda x: seen.append(x) or forward(x)
    trainer.chain = lambda x: x  # whose energies are not looked at
    trainer.step()
    (minus, plus, x), (minus2, plus2, x2) = seen[:3], seen[3:]
    assert len(seen) == 6 and len(drawn) == 1 and drawn[0] is plus
    assert x is x2 and plus is plus2 and minus is minus2
    assert not torch.equal(x, plus), "p(y|x) and p(x) see different batches (SADA-JEM Eq. 11)"
    shared = Trainer(params.run("jempp-m5", "smoke"), split, 0)
    assert shared.unaugmented is None


def test_the_second_stream_is_not_augmented():
    split = sources.prepare(params.data("smoke", "primary"))
    trainer = Trainer(params.run("sada-k5", "smoke").but({"input_noise": 0.0}), split, 0)
    known = {image.numpy().tobytes() for image in split.x_train}

    def share(stream):
        images = [image for i in range(5) for image in data.to_bytes(stream(i, trainer.noise)[0])]
        return sum(image.numpy().tobytes() in known for image in images) / len(images)

    assert share(trainer.unaugmented) == 1 and share(trainer.stream) < 0.6


def _half(rank, port, path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = small().double()
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(1)).double()[rank::2]
    y = (torch.arange(16) % 3)[rank::2]

    def reduce():
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= 2

    sam = SAM(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), 0.3, reduce=reduce)
    for _ in range(4):
        sam.step(lambda: nn.functional.cross_entropy(model(x), y).backward())
    torch.save(torch.cat([p.detach().flatten() for p in model.parameters()]), f"{path}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_stay_together(tmp_path):
    """Each climbs its own half's gradient (Foret et al.'s m-sharpness); the step is their average, known in closed form."""
    import socket

    import torch.multiprocessing as mp

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_half, (port, str(tmp_path)), nprocs=2)
    a, b = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert torch.equal(a, b)
    # the same by hand, in one process
    model = small().double()
    x, y = torch.randn(16, 5, generator=torch.Generator().manual_seed(1)).double(), torch.arange(16) % 3
    base, ps = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), list(model.parameters())
    for _ in range(4):
        second = []
        for r in (0, 1):
            at = [p.detach().clone() for p in ps]
            g = torch.autograd.grad(nn.functional.cross_entropy(model(x[r::2]), y[r::2]), ps)
            norm = torch.cat([v.flatten() for v in g]).norm()
            with torch.no_grad():
                for p, v in zip(ps, g):
                    p += 0.3 * v / norm
            second.append(torch.autograd.grad(nn.functional.cross_entropy(model(x[r::2]), y[r::2]), ps))
            with torch.no_grad():
                for p, v in zip(ps, at):
                    p.copy_(v)
        for p, u, v in zip(ps, *second):
            p.grad = (u + v) / 2
        base.step()
    assert torch.allclose(a, torch.cat([p.detach().flatten() for p in ps]), atol=1e-10)
