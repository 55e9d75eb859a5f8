"""The target loss of a blend as a function of alpha, eq. (2), with every pass charged to one account."""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glue_cli.foundation.seeds import derive_seed, generator
from glue_cli.running.batchnorm import differentiate_statistics, use_batch_statistics
from glue_cli.running.cuda_graphs import CudaCapture, GraphedForwards
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.losses import IGNORED
from glue_cli.search.account import Cost
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.criterion import Criterion
from glue_cli.search.secants import Quadratic, Secants

# What the blends towards all experts may take together; beyond it they come one at a time.
_PASS_BYTES = 64 << 20
# A larger model keeps a GPU busy for longer than its kernels take to launch.
_GRAPHED_COLUMNS = 1 << 24

# Tensors that follow from alpha [G, K] in another way than as a blend; differentiable.
MakeTensors = Callable[[Tensor], Mapping[str, Tensor]]


def make_nothing(alpha: Tensor) -> dict[str, Tensor]:
    """Make no tensors: all of the model is blended, or does not depend on alpha."""
    return {}


class BlendObjective:
    """L(alpha) on minibatches of the target's training data, and on its validation data.

    The blends of a step live in one matrix [m, d], and the parameters of m copies of the model are views into its
    rows: a step is one pass over the experts, then bare forward passes.

    Args:
        model: the architecture, on the device, with the tensors that do not depend on alpha.
        criterion: what is minimised.
        train_batch: the minibatch of a step, the same for every method.
        validation_batches: the whole validation set, in batches as large.
        statistics: whether BatchNorm uses the blended running statistics, or those of the batch.
        bn_gradient: whether `gradient` passes through the blended running statistics.
        make_tensors: the tensors that are not blended and depend on alpha all the same.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: ExpertBank,
        *,
        criterion: Criterion,
        train_batch: Callable[[int], Batch],
        validation_batches: Callable[[], Iterable[Batch]],
        compute: Compute,
        seed: int,
        statistics: Literal["running", "batch"] = "running",
        bn_gradient: bool = True,
        make_tensors: MakeTensors = make_nothing,
    ) -> None:
        self.is_smooth, self.follows_loss = criterion.goal.is_smooth, criterion.goal.follows_loss
        self.n_groups, self.n_experts = bank.n_groups, bank.n_experts
        self.cost = Cost()
        self._uniform = torch.full((bank.n_groups, bank.n_experts), 1 / bank.n_experts, dtype=torch.float64)
        self._model, self._bank = model.eval().requires_grad_(False), bank
        self._criterion, self._compute = criterion, compute
        self._train_batch, self._validation_batches = train_batch, validation_batches
        self._seed, self._make_tensors = seed, make_tensors
        self._bn_gradient = bn_gradient and statistics == "running"
        if statistics == "batch":
            use_batch_statistics(self._model)
        is_graphed = compute.device.type == "cuda" and bank.n_columns <= _GRAPHED_COLUMNS
        self._outputs_of = GraphedForwards(CudaCapture(compute.device)) if is_graphed else outputs_of
        self._blends = torch.empty(0, bank.n_columns, device=bank.device)
        self._copies: list[nn.Module] = []
        self._differentiable: tuple[nn.Module, Tensor, Tensor] | None = None

    @torch.no_grad()
    def probe_losses(self, alphas: Tensor, step: int) -> Tensor:
        """Return the loss of each blend on the minibatch of `step`, [m], float64, eq. (3).

        All blends see the same examples and the same random state; BatchNorm is in eval mode.

        Args:
            alphas: [m, G, K], on the simplex.
        Cost: one pass over the experts and m forwards.
        """
        batch = self._train_batch(step)
        self._load(alphas)
        losses = [self._terms(copied, batch, step) for copied in self._copies[: len(alphas)]]
        return torch.stack([terms.mean(dtype=torch.float64) for terms in losses]).cpu()

    @torch.no_grad()
    def quadratic(self, alpha: Tensor, coordinates: Tensor, radius: float, step: int) -> Quadratic:
        """Return the loss on the minibatch of `step` to second order, from alpha towards single experts.

        Where the goal has no slope, its value at alpha stands with the slopes and curvatures of the loss.

        Args:
            alpha: [G, K], on the simplex.
            coordinates: the directions, int64 [n], as positions in alpha flattened: a group goes to an expert.
            radius: how far towards the expert the outputs are taken, in (0, 1].
        Cost: n + 1 forwards. Of a small model one pass over the experts; of a large one a pass, and each expert alone.
        """
        batch = self._train_batch(step)
        models = self._blends_towards_experts(alpha, coordinates, radius)
        outputs = self._forward(next(models), batch, step)
        value = self._criterion.terms(outputs, batch[1]).mean(dtype=torch.float64).item()
        draws = generator(self._seed, "secants", step)
        secants = Secants(self._criterion.loss, outputs, batch[1], radius=radius, draws=draws)
        for model in models:
            secants.add(self._forward(model, batch, step))
        return secants.quadratic(value)

    def gradient(self, alpha: Tensor, step: int) -> tuple[float, Tensor]:
        """Return the loss on the minibatch of `step`, and dL/dalpha up to a constant by group, [G, K], float64.

        The constant is the mean over alpha: the products are taken with the experts' differences from the blend.

        Args:
            alpha: [G, K], on the simplex.
        Cost: one pass over the experts for the blend and one for the products, a forward and a backward.
        """
        model, theta, gradient = self._differentiable_model()
        self._bank.blend(alpha[None], theta)
        gradient.zero_()
        with torch.enable_grad():
            by_alpha = alpha.detach().clone().requires_grad_()
            made = self._make_tensors(by_alpha)
            leaves = _set_tensors(model, made)
            loss = self._terms(model, self._train_batch(step), step).mean()
            loss.backward()  # type: ignore[no-untyped-call]
        self.cost.backwards += 1
        products = self._bank.inner_products(gradient[0], theta[0]).cpu()
        if made:
            slopes = [_slope_of(leaf).to(tensor) for leaf, tensor in zip(leaves, made.values(), strict=True)]
            products += torch.autograd.grad(list(made.values()), by_alpha, slopes)[0]
        return loss.item(), products

    @torch.no_grad()
    def validation_terms(self, alpha: Tensor, n_batches: int | None = None) -> Tensor:
        """Return what the loss of the blend with coefficients alpha [G, K] on validation data is the mean of.

        Args:
            n_batches: of how many validation batches, from the first on; None for all.
        Returns:
            float64, a term an example, or a batch where the score has no others. That of a text is the sum over its
            tokens by the mean number of tokens: texts are independent, tokens are not.
        """
        self._load(alpha[None])
        before = self.cost.forwards
        batches = islice(self._validation_batches(), n_batches)
        found = [_by_example(self._terms(self._copies[0], batch, 0), batch[1]) for batch in batches]
        self.cost.validation_forwards += self.cost.forwards - before
        sums, counts = (torch.cat([part.cpu() for part in parts]).double() for parts in zip(*found, strict=True))
        return sums / counts.mean()

    def validation_loss(self, alpha: Tensor, n_batches: int | None = None) -> float:
        """Return the loss of the blend with coefficients alpha [G, K] on validation data, as `validation_terms`."""
        return self.validation_terms(alpha, n_batches).mean().item()

    @cached_property
    def n_validation_batches(self) -> int:
        """How many batches the validation data are."""
        return sum(1 for _ in self._validation_batches())

    def _terms(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        return self._criterion.terms(self._forward(model, batch, step), batch[1])

    def _forward(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        inputs, targets = batch
        self.cost.forwards += 1
        self.cost.examples += len(targets)
        devices: Sequence[torch.device] = [targets.device] if targets.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(derive_seed(self._seed, "probe", step))
            with self._compute.autocast():
                return self._outputs_of(model, inputs)

    def _load(self, alphas: Tensor) -> None:
        """Blend into the rows of the first copies."""
        self._make_copies(len(alphas))
        self._bank.blend(alphas, self._blends[: len(alphas)])
        for copied, alpha in zip(self._copies, alphas, strict=False):
            _set_tensors(copied, self._make_tensors(alpha))

    def _make_copies(self, m: int) -> None:
        """See to it that there are `m` copies at least; when there are fewer, all are made anew."""
        if m > len(self._copies):
            self._copies, self._blends = [], self._blends.new_empty(0)  # before others take their place
            self._blends = torch.empty(m, self._bank.n_columns, device=self._bank.device)
            made = self._make_tensors(self._uniform)
            self._copies = [_bind(self._model, self._bank, row, made.keys()) for row in self._blends]

    def _blends_towards_experts(self, alpha: Tensor, coordinates: Tensor, radius: float) -> Iterator[nn.Module]:
        """Yield the blend for alpha [G, K], then it moved by `radius` towards single experts; each for a forward."""
        ends = towards_experts(alpha, coordinates, radius)
        if 4 * self._bank.n_columns * (1 + len(ends)) <= _PASS_BYTES:
            self._load(torch.cat([alpha[None], ends]))
            yield from self._copies[: 1 + len(ends)]
            return
        self._make_copies(2)
        self._load(alpha[None])
        blend, moved = self._copies[:2]
        yield blend
        for end, coordinate in zip(ends, coordinates.tolist(), strict=True):
            group, expert = divmod(coordinate, self.n_experts)
            self._bank.move(self._blends[0], group, expert, radius, self._blends[1])
            _set_tensors(moved, self._make_tensors(end))
            yield moved

    def _differentiable_model(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Return a copy of the model whose tensors are views of theta [1, d], and whose gradients gather in [1, d]."""
        if self._differentiable is None:
            theta = torch.empty(1, self._bank.n_columns, device=self._bank.device)
            gradient = torch.zeros_like(theta)
            made = self._make_tensors(self._uniform)
            model = _bind(self._model, self._bank, theta[0], made.keys())
            leaves: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
            if self._bn_gradient:
                differentiate_statistics(model)
                leaves |= dict(model.named_buffers(remove_duplicate=False))
            for name, place in self._bank.places.items():
                if name in leaves:
                    leaves[name].requires_grad_()
                    leaves[name].grad = place.view(gradient[0])
            self._differentiable = model, theta, gradient
        return self._differentiable


def towards_experts(alpha: Tensor, coordinates: Tensor, radius: float) -> Tensor:
    """Return alpha [G, K] moved by `radius` towards the experts at `coordinates` [n], each alone: [n, G, K]."""
    n_experts = alpha.shape[1]
    ends = alpha.repeat(len(coordinates), 1, 1)
    places = torch.arange(len(coordinates)), coordinates // n_experts
    ends[places] *= 1 - radius
    ends[*places, coordinates % n_experts] += radius
    return ends


def _by_example(terms: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the terms of each example, and how many these are; of the batch, where it has one in all."""
    n_terms = (targets != IGNORED).flatten(1).sum(1) if targets.dim() > 1 and not targets.is_floating_point() else None
    if n_terms is None or n_terms.sum() != len(terms):
        return terms, torch.ones_like(terms)
    terms, n_terms = terms.double().cpu(), n_terms.cpu()  # a GPU would add in any order
    texts = torch.repeat_interleave(torch.arange(len(targets)), n_terms)
    return torch.zeros(len(targets), dtype=torch.float64).index_add(0, texts, terms), n_terms


def _bind(model: nn.Module, bank: ExpertBank, row: Tensor, made: Collection[str]) -> nn.Module:
    """Return a copy of the model: blended tensors are views of `row` [d], those `made` its own, the rest is shared."""
    tied = _tied_names(model)
    own = {alias for name in made for alias in (name, *tied.get(name, ()))}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    copied = copy.deepcopy(model, {id(tensor): tensor for name, tensor in tensors if name not in own})
    for name, place in bank.places.items():
        shared = nn.Parameter(place.view(row), requires_grad=False)
        for alias in (name, *(other for other in tied.get(name, ()) if other not in bank.places)):
            path, _, leaf = alias.rpartition(".")
            module = copied.get_submodule(path)
            if leaf in module._parameters:
                module._parameters[leaf] = shared
            else:
                module._buffers[leaf] = shared.data
    for module in copied.modules():
        if isinstance(module, nn.RNNBase):
            module.forward = _without_cudnn(module.forward)
    return copied


def _without_cudnn(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Keep cuDNN from a recurrent layer: it moves the weights out of their row, and has no backward in eval mode."""

    def run(*arguments: Any, **named: Any) -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            return forward(*arguments, **named)

    return run


def _tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Return the other names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: [n for n in group if n != name] for group in names.values() if len(group) > 1 for name in group}


def _set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Give tensors of the model new values, with no gradient so far; return them."""
    leaves = []
    for name, tensor in tensors.items():
        parameter = model.get_parameter(name)
        parameter.data.copy_(tensor.detach())
        parameter.grad = None
        leaves.append(parameter.requires_grad_(torch.is_grad_enabled()))
    return leaves


def _slope_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
