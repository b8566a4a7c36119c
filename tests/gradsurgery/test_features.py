"""join(features=...): surgery at a shared trunk's output."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradsurgery.features
from gradsurgery import GradVac, PCGrad, Sum, split
from gradsurgery import functional as F
from gradsurgery.methods.order import visiting_order
from tests import oracles
from tests.gradsurgery.problems import Fails, linear_losses, same, state_of, vectors, wrap
from tests.methods import ALONE, METHODS, every_method, obeying

TASKS = ("a", "b", "c")


class Shared(nn.Module):
    """A trunk, a layer above its output that tasks a and b share, and a head per task."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
        self.upper = nn.Linear(4, 4)
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
        self.heads["b"].weight.data.copy_(-self.heads["a"].weight.data)  # a and b conflict
        self.to(dtype)

    def losses(self, z: Tensor) -> dict[str, Tensor]:
        """The losses of the three tasks on one batch."""
        shared = self.upper(z)
        inputs = {"a": shared, "b": shared.tanh(), "c": z.square()}
        return {t: (self.heads[t](inputs[t]) - 1).square().mean() for t in TASKS}


def batch(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, generator=generator, dtype=torch.float64).to(dtype)


def grads(module: nn.Module) -> dict[str, Tensor | None]:
    return {n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def close(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], tol: float) -> None:
    assert actual.keys() == expected.keys()
    for name, grad in actual.items():
        other = expected[name]
        assert (grad is None) == (other is None), name
        if grad is not None:
            scale = other.abs().max() + 1e-300
            assert (grad - other).abs().max() <= tol * scale, name


# ------------------------------------------------------------------ laws


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_sum_it_is_the_plain_backward_everywhere(dtype: torch.dtype) -> None:
    """Also in leaves that are not the optimizer's, and on top of what is in ``.grad``."""
    runs = []
    for with_features in (True, False):
        model, x = Shared(dtype), batch(dtype).requires_grad_()
        temperature = torch.ones((), dtype=dtype, requires_grad=True)  # above, not the optimizer's
        model.trunk[0].weight.grad = torch.ones_like(model.trunk[0].weight)
        model.upper.weight.grad = torch.ones_like(model.upper.weight)
        optimizer = wrap(list(model.parameters()), Sum(), tasks=TASKS)
        z = model.trunk(x)
        losses = {task: loss * temperature for task, loss in model.losses(z).items()}
        joined = optimizer.join(losses, features=z) if with_features else sum(losses.values())
        (joined + model.trunk[0].bias.sum()).backward()
        runs.append({**grads(model), "x": x.grad, "temperature": temperature.grad})
    close(*runs, tol=1e-12 if dtype == torch.float64 else 1e-5)


@obeying(ALONE)
def test_one_loss_is_a_plain_backward(name: str) -> None:
    model, other = Shared(), Shared()
    optimizer = wrap(list(model.parameters()), METHODS[name].make(3), tasks=TASKS)
    z = model.trunk(batch())
    optimizer.join({"b": model.losses(z)["b"]}, features=z).backward()
    other.losses(other.trunk(batch()))["b"].backward()
    close(grads(model), grads(other), 1e-12)


@every_method
def test_a_trunk_that_is_a_parameter_is_the_exact_way(name: str) -> None:
    """Bit for bit, and over several steps: the method's state and the statistics are the same."""
    rows = vectors((1, 0, 2), (-1, 1, 0), (0, -1, -1))
    runs = []
    for with_features in (True, False):
        w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        optimizer = wrap([w], METHODS[name].make(3), tasks=TASKS)
        updates = []
        for _ in range(3):
            losses = [loss.square() for loss in linear_losses([w], rows)]
            optimizer.join(losses, features=w if with_features else None).backward()
            updates.append(w.grad)
            optimizer.step()
            optimizer.zero_grad()
        surgery = dict(state_of(optimizer))
        runs.append([updates, surgery, optimizer.conflicts.summary()])
    assert same(runs[0][:2], runs[1][:2])
    assert runs[0][2] == runs[1][2]


def test_a_linear_trunk_on_one_example_is_the_exact_way() -> None:
    """dL/dW = g x' and dL/db = g: the Gram matrices differ by the factor |x|^2 + 1 alone."""
    runs = []
    for with_features in (True, False):
        model = Shared()
        model.trunk = nn.Linear(3, 4).double()
        torch.manual_seed(1)
        nn.init.normal_(model.trunk.weight)
        parameters = [*model.trunk.parameters(), *model.heads.parameters()]
        optimizer = wrap(parameters, GradVac(beta=0.5, target=0.1), tasks=TASKS, lr=1e-3)
        for _ in range(3):
            z = model.trunk(batch()[:1])
            losses = {t: (model.heads[t](z) - 1).square().mean() for t in TASKS}
            optimizer.join(losses, features=z if with_features else None).backward()
            update = grads(model)
            optimizer.step()
            optimizer.zero_grad()
        runs.append(update)
        assert optimizer.conflicts.summary()["gradients"]["altered"] > 0
    close(*runs, tol=1e-10)


def oracle(method: str, model: Shared, order: Tensor, **options: Any) -> dict[str, Tensor]:
    """Gradients by parameter name: each task's gradient at z and at the shared layer by itself,
    the papers' algorithm on the two as one vector, and the trunk's part by the chain rule."""
    z = model.trunk(batch())
    leaf = z.detach().requires_grad_()
    upper = list(model.upper.parameters())
    rows = []
    for loss in model.losses(leaf).values():
        parts = torch.autograd.grad(loss, [leaf, *upper], retain_graph=True, allow_unused=True)
        filled = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip([leaf, *upper], parts, strict=True)
        ]
        rows.append(torch.cat([part.reshape(-1) for part in filled]).numpy())
    answer = getattr(oracles, method)(np.stack(rows), order.numpy(), **options)
    update = torch.from_numpy(answer.update)
    gradients = {}
    (z * update[: z.numel()].view_as(z)).sum().backward()
    gradients |= {f"trunk.{n}": p.grad for n, p in model.trunk.named_parameters()}
    at = z.numel()
    for name, parameter in model.upper.named_parameters():
        gradients[f"upper.{name}"] = update[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
    for task, loss in model.losses(leaf).items():
        head = dict(model.heads[task].named_parameters())
        head_grads = torch.autograd.grad(loss, list(head.values()))
        gradients |= {f"heads.{task}.{n}": g for n, g in zip(head, head_grads, strict=True)}
    return gradients


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["pcgrad", "gradvac"])
def test_it_is_what_the_papers_say_of_the_gradients_at_the_features(method: str, seed: int) -> None:
    model = Shared()
    chosen = PCGrad(seed) if method == "pcgrad" else GradVac(0.5, target=0.4, seed=seed)
    optimizer = wrap(list(model.parameters()), chosen, tasks=TASKS)
    order, _ = visiting_order(state_of(optimizer)["rng"], len(TASKS))
    options = {} if method == "pcgrad" else {"target": np.full((3, 3), 0.4), "beta": 0.5}
    expected = oracle(method, Shared(), order, **options)
    z = model.trunk(batch())
    optimizer.join(model.losses(z), features=z).backward()
    close(grads(model), expected, 1e-10)
    assert optimizer.conflicts.summary()["gradients"]["altered"] > 0


def test_weights_and_statistics_are_those_of_the_gram_matrix_at_the_features() -> None:
    """Without shared parameters above them; K = 2, where the order of visits does not matter."""
    model = Shared()
    parameters = [*model.trunk.parameters(), *model.heads.parameters()]
    optimizer = wrap(parameters, PCGrad(), tasks=("a", "b"))
    z = model.trunk(batch())
    losses = [(model.heads[t](z) - 1).square().mean() for t in ("a", "b")]
    rows = [list(torch.autograd.grad(loss, [z], retain_graph=True)) for loss in losses]
    gram = F.gram(rows)
    weights = F.pcgrad(gram, torch.tensor([[0, 1], [0, 1]])).weights[0]
    optimizer.join(losses, features=z).backward()
    summary = optimizer.conflicts.summary()
    assert list(summary["weights"].values()) == pytest.approx(weights.tolist(), rel=1e-12)
    cosine = gram[0, 0, 1] / (gram[0, 0, 0] * gram[0, 1, 1]).sqrt()
    assert summary["pairs"][0]["cosine"]["mean"] == pytest.approx(cosine.item(), rel=1e-12)
    assert summary["pairs"][0]["conflicts"] == 1


@pytest.mark.parametrize("factor", [0.5, 1024.0])
def test_a_factor_reaches_everything(factor: float) -> None:
    runs = []
    for scale in (1.0, factor):
        model = Shared()
        optimizer = wrap(list(model.parameters()), tasks=TASKS)
        z = model.trunk(batch())
        (optimizer.join(model.losses(z), features=z) * scale).backward()
        runs.append({n: g / scale for n, g in grads(model).items()})
    assert same(*runs)  # powers of two: to the bit


def test_examples_of_different_tasks_are_orthogonal_at_the_features() -> None:
    """The documentation warns of it: a mixed batch has no conflicts there, and no surgery."""
    ids = [0, 1, 0, 2, 1, 2]
    runs = []
    for with_features in (True, False):
        model = Shared()
        optimizer = wrap(list(model.parameters()), tasks=TASKS)
        z = model.trunk(batch())
        outputs = torch.stack([model.heads[t](z) for t in TASKS])
        losses = split((outputs[ids, range(6), 0] - 1).square(), ids, TASKS)
        if with_features:
            optimizer.join(losses, features=z).backward()
            assert all(p["cosine"]["max"] == 0 for p in optimizer.conflicts.summary()["pairs"])
        else:
            sum(losses.values()).backward()
        runs.append(grads(model))
    close(*runs, tol=1e-12)


# ------------------------------------------------------------------ what runs, and when


class Counted(torch.autograd.Function):
    """The identity, that notes its backward passes and keeps a tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, calls: list, saved: list) -> Tensor:
        kept = x * 2
        saved.append(weakref.ref(kept))
        ctx.calls = calls
        ctx.save_for_backward(kept)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _ = ctx.saved_tensors
        ctx.calls.append(1)
        return grad, None, None


@pytest.mark.parametrize("shared_above", [False, True])
def test_the_trunk_has_one_backward_and_nothing_is_kept(shared_above: bool) -> None:
    w, heads = nn.Parameter(torch.ones(2)), [nn.Parameter(torch.ones(2)) for _ in range(3)]
    trunk: list = []
    above: list = []
    saved: list = []
    z = Counted.apply(w * 1, trunk, saved)  # itself at the place of the cut
    hidden = Counted.apply(z, above, []) if shared_above else z
    losses = [Counted.apply(hidden * head, above, saved).sum() for head in heads]
    wrap([w, *heads], Sum()).join(losses, features=z).backward()
    assert (len(trunk), len(above)) == (1, 6 if shared_above else 3)
    assert w.grad.tolist() == [3, 3]
    if not shared_above:
        gc.collect()
        assert [ref() for ref in saved] == [None] * 4  # though the caller's losses still live


def test_the_step_after_knows_nothing_of_it() -> None:
    """Neither the features' memory nor their gradients stay with the optimizer."""
    runs = []
    for features_first in (True, False):
        model = Shared()
        optimizer = wrap(list(model.parameters()), tasks=("a", "b"))
        for with_features in (features_first, False):
            z = model.trunk(batch())
            losses = [model.losses(z)[t] for t in ("a", "b")]
            optimizer.join(losses, features=z if with_features else None).backward()
            update = grads(model)
            optimizer.zero_grad()
            alive = weakref.ref(z.untyped_storage())
            del z, losses
            gc.collect()
            assert alive() is None
        runs.append(update)
    assert same(*runs)


def test_several_features() -> None:
    """Two outputs of the trunk, and one tensor that no loss depends on in this step."""
    runs = []
    for with_features in (True, False):
        model = Shared()
        optimizer = wrap(list(model.parameters()), Sum(), tasks=TASKS)
        hidden = model.trunk[:2](batch())
        left, right = model.trunk[2:](hidden), hidden.sin()
        losses = model.losses(left)
        losses["c"] = losses["c"] + right.square().sum()
        features = [left, right, model.upper(left)]
        joined = (
            optimizer.join(losses, features=features) if with_features else sum(losses.values())
        )
        joined.backward()
        runs.append(grads(model))
    close(*runs, tol=1e-12)


def test_the_middle_of_a_network() -> None:
    """With heads on two heights, the lower tensor is the place: what follows is above it."""
    runs = []
    for with_features in (True, False):
        model = Shared()
        optimizer = wrap(list(model.parameters()), Sum(), tasks=TASKS)
        low = model.trunk[:2](batch())
        high = model.trunk[2:](low)
        losses = model.losses(high)
        losses["c"] = losses["c"] + low.square().sum()
        if with_features:
            with pytest.raises(ValueError, match="computed from another: pass the lower one"):
                optimizer.join(losses, features=[low, high])
        joined = optimizer.join(losses, features=low) if with_features else sum(losses.values())
        joined.backward()
        runs.append(grads(model))
    close(*runs, tol=1e-12)


def test_a_loss_may_do_without_the_features() -> None:
    model, other = Shared(), Shared()
    optimizer = wrap(list(model.parameters()), tasks=TASKS)
    z = model.trunk(batch())
    losses = model.losses(z)
    losses["b"] = model.heads["b"](torch.ones(1, 4, dtype=torch.float64)).sum()
    optimizer.join(losses, features=z).backward()
    other.heads["b"](torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    assert torch.equal(model.heads["b"].weight.grad, other.heads["b"].weight.grad)
    pairs = {(p["i"], p["j"]): p["possible"] for p in optimizer.conflicts.summary()["pairs"]}
    assert (pairs["a", "c"], pairs["a", "b"]) == (1, 0)


def test_losses_right_at_the_features() -> None:
    """No head at all: gradients that autograd hands out as views of one number."""
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    z = w * 2
    optimizer = wrap([w], tasks=("a", "b"))
    optimizer.join([z.sum(), -3 * z.sum()], features=z).backward()
    assert w.grad.abs().max() < 1e-6  # opposite
    optimizer.zero_grad()
    total = (w * 2).sum()
    optimizer.join([total, total], features=total).backward()
    assert w.grad.tolist() == [4, 4]


def test_gradients_above_may_share_memory() -> None:
    """``(p + q).sum()`` gives p and q one tensor, expanded from one number."""
    w, p, q = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(3))
    z = w * 1
    losses = [(p + q + z).sum(), (p + q - z).sum(), -(p + q + z).sum()]
    wrap([w, p, q], Sum()).join(losses, features=z).backward()
    assert [x.grad.tolist() for x in (w, p, q)] == [[-1, -1], [1, 1], [1, 1]]


def test_sparse_gradients_above() -> None:
    runs = []
    for with_features in (True, False):
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(4))
        table = nn.Embedding(6, 4, sparse=True)
        z = w.tanh()
        losses = [(table(torch.tensor(rows)) * z).sum() for rows in ([0, 1, 1], [1, 4])]
        optimizer = wrap([w, table.weight], Sum(), tasks=("a", "b"))
        (optimizer.join(losses, features=z) if with_features else sum(losses)).backward()
        assert table.weight.grad.is_sparse
        runs.append({"w": w.grad, "table": table.weight.grad.to_dense()})
    close(*runs, tol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_trunk(reentrant: bool) -> None:
    runs = []
    for checkpointed in (True, False):
        model, x = Shared(), batch().requires_grad_()
        optimizer = wrap(list(model.parameters()), tasks=TASKS)
        z = checkpoint(model.trunk, x, use_reentrant=reentrant) if checkpointed else model.trunk(x)
        optimizer.join(model.losses(z), features=z).backward()
        runs.append(grads(model))
    assert same(*runs)


def test_a_retained_gradient_at_the_features_is_the_combined_one() -> None:
    model = Shared()
    optimizer = wrap(list(model.parameters()), Sum(), tasks=TASKS)
    z = model.trunk(batch())
    z.retain_grad()
    (z.sum() * 2).backward(retain_graph=True)
    optimizer.zero_grad()
    optimizer.join(model.losses(z), features=z).backward()
    leaf = z.detach().requires_grad_()
    sum(model.losses(leaf).values()).backward()
    assert torch.allclose(z.grad, leaf.grad + 2, atol=1e-12)


def test_grad_scaler() -> None:
    """Scaled, unscaled, clipped, stepped; then an overflow, which is skipped and counted."""
    model, plain = Shared(torch.float32), Shared(torch.float32)
    optimizer = wrap(list(model.parameters()), GradVac(beta=0.5), tasks=TASKS)
    other = wrap(list(plain.parameters()), GradVac(beta=0.5), tasks=TASKS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(3):
        z = model.trunk(batch(torch.float32, seed))
        scaler.scale(optimizer.join(model.losses(z), features=z)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        z = plain.trunk(batch(torch.float32, seed))
        other.join(plain.losses(z), features=z).backward()
        other.step()
        other.zero_grad()
    assert same(list(model.parameters()), list(plain.parameters()))

    before = state_of(optimizer)["target"].clone()
    z = model.trunk(batch(torch.float32))
    losses = model.losses(z)
    losses["b"] = losses["b"] * float("inf")
    scaler.scale(optimizer.join(losses, features=z)).backward()
    assert not model.trunk[0].weight.grad.isfinite().all()
    assert not model.heads["b"].weight.grad.isfinite().all()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512
    assert same(list(model.parameters()), list(plain.parameters()))
    assert optimizer.conflicts.summary()["nonfinite"] == 1
    assert torch.equal(state_of(optimizer)["target"], before)


def test_autocast_leaves_features_in_bf16() -> None:
    """Above them the bits of the exact way, with Sum; below, what bf16 can do."""
    runs = []
    for with_features in (True, False):
        model = Shared(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.trunk[:3](batch(torch.float32))
            losses = model.losses(z)
        assert z.dtype == torch.bfloat16
        optimizer = wrap(list(model.parameters()), Sum(), tasks=TASKS)
        optimizer.join(losses, features=z if with_features else None).backward()
        runs.append(grads(model))
    assert same(*({n: g for n, g in run.items() if "trunk" not in n} for run in runs))
    close(*runs, tol=5e-2)


def test_the_segment_of_features_is_the_groupings() -> None:
    """A function may put them with the trunk, apart from what the tasks share above."""
    model = Shared()

    def grouping(name: str) -> str:
        return "trunk" if name == "features" or name.startswith("trunk") else "above"

    named = list(model.named_parameters())
    optimizer = wrap(named, PCGrad(), tasks=TASKS, grouping=grouping)
    order, _ = visiting_order(state_of(optimizer)["rng"], len(TASKS))
    z = model.trunk(batch())
    losses = model.losses(z)
    wanted = [z, *model.upper.parameters()]
    rows = [
        list(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True))
        for loss in losses.values()
    ]
    weights = F.pcgrad(F.gram(rows, [0, 1, 1]), order).weights
    at_z, *above = F.combine(rows, weights, [0, 1, 1])
    expected = torch.autograd.grad(z, list(model.trunk.parameters()), at_z, retain_graph=True)
    optimizer.join(losses, features=z).backward()
    combined = [p.grad for p in [*model.trunk.parameters(), *model.upper.parameters()]]
    for grad, other in zip(combined, [*expected, *above], strict=True):
        assert torch.allclose(grad, other, rtol=1e-12, atol=1e-14)
    segments = optimizer.conflicts.summary()["by_segment"]
    assert [entry["segment"] for entry in segments] == ["trunk", "above"]
    assert segments[0]["pairs"][0]["cosine"] != segments[1]["pairs"][0]["cosine"]


def test_without_grad_it_is_a_plain_sum() -> None:
    model = Shared()
    optimizer = wrap(list(model.parameters()), tasks=TASKS)
    with torch.no_grad():
        z = model.trunk(batch())
        losses = model.losses(z)
        joined = optimizer.join(losses, features=z)
    assert not joined.requires_grad
    assert joined == sum(losses.values())


# ------------------------------------------------------------------ what is refused


def refused(
    error: type[Exception],
    message: str,
    features: Callable[[Shared, Tensor], Any] = lambda model, z: z,
    losses: Callable[[Shared, Tensor], Any] = Shared.losses,
    combine: bool = True,
    **options: Any,
) -> None:
    """Expect ``join`` itself to raise, and nothing to be left behind."""
    model = Shared()
    optimizer = wrap(list(model.named_parameters()), tasks=TASKS, **options)
    z = model.trunk(batch())
    with pytest.raises(error, match=message):
        optimizer.join(losses(model, z), combine, features=features(model, z))
    optimizer.step()  # nothing waits
    optimizer.join(model.losses(z)).backward()  # and the graph is whole


def test_accumulation_is_refused() -> None:
    refused(ValueError, r"combine=True.*graphs.*leave features out", combine=False)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (lambda model, z: z.detach(), ValueError, r"shape \[6, 4\] do not require grad"),
        (lambda model, z: z.clone(), ValueError, "no loss depends.*very tensor"),
        (lambda model, z: [], ValueError, "empty"),
        (lambda model, z: [z, z], ValueError, "twice"),
        (lambda model, z: [z, None], TypeError, "NoneType"),
        (lambda model, z: "z", TypeError, "str"),
    ],
)
def test_features_that_cannot_be_used(features: Any, error: type[Exception], message: str) -> None:
    refused(error, message, features)


def test_features_with_hooks_are_refused() -> None:
    """They would run K + 1 times."""

    def hooked(model: Shared, z: Tensor) -> Tensor:
        z.register_hook(lambda grad: 2 * grad)
        return z

    refused(ValueError, r"shape \[6, 4\] have hooks.*remove", hooked)


def test_a_tied_parameter_is_refused() -> None:
    """Like the decoder of a masked language model, which is the embedding as well."""

    def losses(model: Shared, z: Tensor) -> dict[str, Tensor]:
        return model.losses(z) | {"b": (z @ model.trunk[2].weight).sum()}

    refused(ValueError, r"'b' reaches parameter 'trunk.2.weight' around.*tied", losses=losses)


def test_a_path_around_the_features_is_refused() -> None:
    """A head on a lower layer, which is not among the features."""
    model = Shared()
    optimizer = wrap(list(model.parameters()), tasks=TASKS)
    low = model.trunk[0](batch())
    high = model.trunk[1:](low)
    with pytest.raises(
        ValueError, match=r"'c' reaches a parameter of shape .* pass all of the trunk's"
    ):
        optimizer.join(model.losses(high) | {"c": low.sum()}, features=high)


def test_another_output_of_the_same_node_is_around_the_features() -> None:
    model = Shared()
    optimizer = wrap(list(model.parameters()), tasks=("a", "b"))
    left, right = model.trunk(batch()).unbind(1)[:2]
    with pytest.raises(ValueError, match="'b' reaches"):
        optimizer.join([left.sum(), right.sum()], features=left)
    optimizer.join([left.sum(), right.sum() - left.sum()], features=[left, right]).backward()


def test_features_of_separate_forwards_are_refused() -> None:
    """Nothing would be compared, and nobody told."""
    model = Shared()
    optimizer = wrap(list(model.parameters()), tasks=TASKS)
    features = [model.trunk(batch(seed=seed)) for seed in range(3)]
    losses = [model.heads[t](z).sum() for t, z in zip(TASKS, features, strict=True)]
    with pytest.raises(ValueError, match=r"single loss.*nothing to compare"):
        optimizer.join(losses, features=features)


@pytest.mark.parametrize("grouping", ["layer", "tensor", lambda name: name[:9]])
def test_a_grouping_without_a_segment_for_them_is_refused(grouping: Any) -> None:
    refused(ValueError, "'features'.*grouping='model'", grouping=grouping)


def test_captured_gradients_that_wait_are_refused() -> None:
    model = Shared()
    optimizer = wrap(list(model.parameters()), tasks=TASKS)
    z = model.trunk(batch())
    first = optimizer.join(model.losses(z), features=z)
    optimizer.join(model.losses(model.trunk(batch())), combine=False).backward()
    message = r"a, b, c have captured gradients.*combine\(\) before features"
    with pytest.raises(RuntimeError, match=message):
        optimizer.join(model.losses(z), features=z)
    with pytest.raises(RuntimeError, match="before features"):
        first.backward()


def test_several_processes_are_refused() -> None:
    gradsurgery.features.refuse_several_processes(1)
    with pytest.raises(NotImplementedError, match=r"one process.*of 2.*leave features out"):
        gradsurgery.features.refuse_several_processes(2)


def test_sharded_parameters_are_refused() -> None:
    class Sharded(Tensor):
        device_mesh = "here"

    with pytest.raises(NotImplementedError, match=r"a Sharded of shape \[2\].*leave features out"):
        gradsurgery.features.refuse_sharded([torch.ones(1), torch.ones(2).as_subclass(Sharded)])


def test_a_failing_head_leaves_nothing_behind() -> None:
    model = Shared()
    optimizer = wrap(list(model.parameters()), tasks=TASKS)
    z = model.trunk(batch())
    losses = model.losses(z)
    losses["b"] = Fails.apply(losses["b"])
    with pytest.raises(MemoryError, match="task b"):
        optimizer.join(losses, features=z).backward()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()  # nothing waits
    z = model.trunk(batch())
    optimizer.join(model.losses(z), features=z).backward()  # and the next step is as any


def test_a_second_backward_is_refused() -> None:
    model = Shared()
    z = model.trunk(batch())
    joined = wrap(list(model.parameters()), tasks=TASKS).join(model.losses(z), features=z)
    joined.backward()
    with pytest.raises(RuntimeError, match=r"second time.*join\(\) again"):
        joined.backward()


@pytest.mark.parametrize("which", ["one head", "both heads"])
def test_parameters_frozen_after_the_forward_get_nothing(which: str) -> None:
    """As in a plain backward, and under the exact way."""
    results = []
    for way in ("plain", "features"):
        model = Shared()
        optimizer = wrap(list(model.parameters()), Sum(), tasks=TASKS)
        z = model.trunk(batch())
        losses = model.losses(z)
        for head in list(model.heads.values())[: 1 if which == "one head" else None]:
            head.requires_grad_(False)
        if way == "plain":
            sum(losses.values()).backward()
        else:
            optimizer.join(losses, features=z).backward()
        results.append(grads(model))
    close(results[1], results[0], 1e-12)
