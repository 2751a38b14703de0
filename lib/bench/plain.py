"""The papers' algorithms written down plainly: what `make bench` measures the package against, and tests compare it with.

Line by line, in float32: every inner step of PYLD through autograd, the replay buffer in host memory, a start drawn for
every image of a batch though one in twenty is used, SAM's two passes in a row. Shares networks, data and p0 with the
package, and nothing else of how it computes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal

from lib.params import Run
from lib.parts import samplers, starts, updates
from lib.parts.cell import ConfigError, given
from lib.parts.networks import Network
from lib.training import Trainer


def energy(model: Network, x: Tensor) -> Tensor:
    return -torch.logsumexp(model(x), dim=1)


def sgld(model: Network, x: Tensor, K: int, alpha: float, noise: float) -> Tensor:
    """JEM: x <- x - alpha dE/dx + noise eps, K times."""
    for _ in range(K):
        x = x.detach().requires_grad_()
        g = torch.autograd.grad(energy(model, x).sum(), x)[0]
        x = x - alpha * g + noise * torch.randn_like(x)
    return x.detach()


def proximal(model: Network, x: Tensor, K: int, alpha: float, epsilon: float) -> Tensor:
    """SADA-JEM Algorithm 1, lines 4 to 6, with the clamps of its code."""
    for _ in range(K):
        x = x.detach().requires_grad_()
        g = torch.autograd.grad(energy(model, x).sum(), x)[0]
        x = (x - alpha * g.clamp(-epsilon, epsilon)).clamp(-1, 1)
    return x.detach()


def pyld(model: Network, x: Tensor, M: int, N: int, alpha: float, epsilon: float) -> Tensor:
    """JEM++ Algorithm 1: M passes through the network, N through its first layer after each."""
    for _ in range(M):
        h = model.first(x).detach().requires_grad_()
        p = torch.autograd.grad(-torch.logsumexp(model.rest(h), dim=1).sum(), h)[0]
        for _ in range(N):
            x = x.detach().requires_grad_()
            gamma = torch.autograd.grad((p * model.first(x)).sum(), x)[0]
            x = (x - alpha * gamma.clamp(-epsilon, epsilon)).clamp(-1, 1)
    return x.detach()


def pgd(model: Network, x: Tensor, K: int, alpha: float, up: float = 1.0) -> Tensor:
    """AT-EBM Eq. 7: normalised ascent on f (up = 1), descent for real images (up = -1)."""
    for _ in range(K):
        x = x.detach().requires_grad_()
        g = torch.autograd.grad(model(x).sum(), x)[0]
        x = (x + up * alpha * g / g.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]).clamp(0, 1)
    return x.detach()


def chain(model: Network, x: Tensor, step: samplers.Step) -> Tensor:
    """A cell's chain, as it is here. Raises: ValueError for a sampler of no paper."""
    match step:
        case samplers.SGLD():
            return sgld(model, x, step.K, step.alpha, step.noise)
        case samplers.Proximal():
            return proximal(model, x, step.K, step.alpha, step.epsilon)
        case samplers.PYLD():
            return pyld(model, x, step.M, step.N, step.alpha, step.epsilon or float("inf"))
        case samplers.PGD():
            return pgd(model, x, step.K, step.alpha)
    raise ValueError(f"step {step.kind}: no paper's algorithm; expected sgld, proximal, pyld or pgd")


def beyond(run: Run) -> Iterator[str]:
    """What of a run is not in the papers' algorithms above. The learning rate stays as it begins."""
    weights = {name: term.weight for name, term in run.loss.terms.items()}
    if run.step is None or run.start is None:
        if weights != {"cross_entropy": 1.0}:
            yield f"a classifier's loss {weights}"
    else:
        if isinstance(run.step, samplers.PGD):
            yield from _beyond_at(run, run.step, run.start, weights)
        else:
            yield from _beyond_jem(run, run.step, run.start, weights)
        if run.step.growth:
            yield f"step.growth {run.step.growth.kind}"
    if run.update.sam and run.update.sam.adaptive:
        yield "update.sam.adaptive"
    if isinstance(run.update, updates.SGD) and run.update.nesterov:
        yield "update.nesterov"


def _beyond_at(run: Run, step: samplers.PGD, start: starts.Starts, weights: dict[str, float]) -> Iterator[str]:
    if weights.keys() - {"r1"} != {"bce"} or weights["bce"] != 1 or run.network.logits != 1:
        yield f"step pgd with loss {weights}, network.logits {run.network.logits}"
    if run.range != "unit" or step.clip is not True or step.radius or (step.real and step.real.radius):
        yield f"step {step} in range {run.range}"
    if not isinstance(start, starts.OtherImages) or start.buffer or start.augment:
        yield f"step pgd from start {start}"


def _beyond_jem(run: Run, step: samplers.Step, start: starts.Starts, weights: dict[str, float]) -> Iterator[str]:
    if weights != {"cross_entropy": 1.0, "contrastive": 1.0}:
        yield f"step {step.kind} with loss {weights}"
    noisy = isinstance(step, samplers.SGLD)  # and clips nothing
    known = noisy or (isinstance(step, samplers.Proximal | samplers.PYLD) and not step.noise)
    if not known or run.range != "symmetric" or step.clip is noisy or not isinstance(step.clip, bool):
        yield f"step {step} in range {run.range}"
    if not isinstance(start, starts.UniformNoise | starts.Gaussians) or start.buffer is None:
        yield f"step {step.kind} from start {start}"


class Plain:
    """The same run as `trainer`, from a copy of its weights, with the methods' loops as above. `step` is one update.

    It knows the papers' own combinations: classifiers, the JEM family with a replay buffer, AT-EBM.
    Raises: ConfigError for any other.
    """

    def __init__(self, trainer: Trainer):
        for what in beyond(trainer.run):
            raise ConfigError(f"run {trainer.run.name}: {what} is in no paper's algorithm, as lib.bench.plain has them")
        self.run, self.stream, self.device = trainer.run, trainer.stream, trainer.device
        self.unaugmented = trainer.unaugmented
        self.model = copy.deepcopy(trainer.model)
        self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # not annotated by torch
        self.optimizer = self._optimizer()
        self.iteration, self.p0 = 0, trainer.start
        self.images: Tensor | None = None  # of the buffer
        if trainer.buffer:
            self.images, self.reinit = trainer.buffer.images.cpu().clone(), trainer.buffer.reinit
            self.p0 = trainer.buffer.fresh
        self.normals: list[MultivariateNormal] = []
        if isinstance(p0 := self.p0, starts.ClassGaussians):
            self.normals = [MultivariateNormal(m.cpu(), scale_tril=L.cpu()) for m, L in zip(p0.mu, p0.factor, strict=True)]

    def _optimizer(self) -> torch.optim.Optimizer:
        u, parameters = self.run.update, self.model.parameters()
        if isinstance(u, updates.Adam):
            return torch.optim.Adam(parameters, u.lr, u.betas, weight_decay=u.weight_decay)
        return torch.optim.SGD(parameters, u.lr, u.momentum, weight_decay=u.weight_decay)

    def draw(self, n: int) -> Tensor:
        """n starts from p0, one at a time where it is a mixture of Gaussians."""
        p0 = given(self.p0, f"run {self.run.name} has no chain")
        if not isinstance(p0, starts.ClassGaussians):
            return p0.sample(n).cpu()
        classes = torch.multinomial(p0.prior.cpu(), n, replacement=True)
        return torch.stack([self.normals[c].sample().view(p0.shape) for c in classes]).clamp(-1, 1)

    def sample(self) -> Tensor:
        """x^-, from the buffer or from p0, and back into the buffer."""
        step, n = self.run.chain, self.run.update.batch
        if self.images is None:
            return chain(self.model, self.draw(n).to(self.device), step)
        index, fresh = torch.randint(len(self.images), (n,)), torch.rand(n) < self.reinit
        x = torch.where(fresh[:, None, None, None], self.draw(n), self.images[index]).to(self.device)
        x = chain(self.model, x, step)
        self.images[index] = x.cpu()
        return x

    def loss(self, x: Tensor, y: Tensor, x_plus: Tensor, x_minus: Tensor | None) -> Tensor:
        """Of images x for p(y|x), x_plus for p(x), and samples x_minus, where the run has a chain."""
        terms = self.run.loss.terms
        if "bce" in terms and x_minus is not None:
            x_plus = x_plus.detach().requires_grad_()
            f = self.model(x_plus).squeeze(1)
            loss = (F.softplus(-f).mean() + F.softplus(self.model(x_minus).squeeze(1)).mean()) / 2
            if "r1" in terms:
                g = torch.autograd.grad(f.sum(), x_plus, create_graph=True)[0]
                loss = loss + terms["r1"].weight * g.flatten(1).square().sum(1).mean() / 2
            return loss
        loss = F.cross_entropy(self.model(x), y)
        if x_minus is None:
            return loss
        return loss + energy(self.model, x_plus).mean() - energy(self.model, x_minus).mean()

    def step(self) -> Tensor:
        """One update; returns the loss."""
        step, sam = self.run.step, self.run.update.sam
        self.model.train()
        x, y = self.stream(self.iteration)
        x_plus = self.unaugmented(self.iteration)[0] if self.unaugmented else x
        x_minus = self.sample() if step else None
        if isinstance(step, samplers.PGD) and step.real:
            x_plus = pgd(self.model, x_plus, step.real.steps, step.alpha, up=-1.0)
        self.optimizer.zero_grad()
        loss = self.loss(x, y, x_plus, x_minus)
        loss.backward()
        if sam:
            before = [p.detach().clone() for p in self.model.parameters()]
            gradients = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
            norm = torch.stack([g.norm() for _, g in gradients]).norm()
            with torch.no_grad():
                for p, g in gradients:
                    p.add_(sam.rho * g / norm)
            self.optimizer.zero_grad()
            self.loss(x, y, x_plus, x_minus).backward()
            with torch.no_grad():
                for p, b in zip(self.model.parameters(), before, strict=True):
                    p.copy_(b)
        self.optimizer.step()
        self.iteration += 1
        return loss.detach()
