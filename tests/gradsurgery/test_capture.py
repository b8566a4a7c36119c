"""Capture: what is taken, what is left alone, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import Method, PCGrad, Sum
from gradsurgery.memory import GradientMemory
from tests.gradsurgery.problems import (
    TwoHeads,
    linear_losses,
    losses_of,
    task_gradients,
    vectors,
    wrap,
)


def test_the_captured_tensors_are_those_autograd_made() -> None:
    """Zero-copy: the result lies where autograd put the first task's gradient."""
    w = nn.Parameter(torch.zeros(1000))
    optimizer = wrap([w], Sum(), tasks=("a", "b"))
    addresses = []
    for task in ("a", "b"):
        with optimizer.task(task):
            (w * 2).sum().backward()
            addresses.append(w.grad.data_ptr())
    optimizer.combine()
    assert w.grad.data_ptr() == addresses[0]
    assert w.grad.tolist() == [4.0] * 1000


def test_one_task_parameters_pass_through_and_unused_ones_stay_without_gradient() -> None:
    model = TwoHeads()
    optimizer = wrap(list(model.parameters()), tasks=("a", "b"))
    alone = task_gradients(model, losses_of(model))
    optimizer.join(losses_of(model)).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("spare"):
            assert parameter.grad is None
        elif name.startswith(("adapter", "heads.a")):
            assert torch.equal(parameter.grad, alone["a"][name])
        elif name.startswith("heads.b"):
            assert torch.equal(parameter.grad, alone["b"][name])


def test_one_task_parameters_do_not_enter_the_gram_matrix() -> None:
    """A huge head gradient would drown the conflict on the trunk, if it were compared."""
    w, head = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = wrap([w, head], tasks=("a", "b"))
    optimizer.join([w[0] + 1e6 * head.sum(), w[1] - w[0]]).backward()
    assert torch.allclose(w.grad, torch.tensor([0.5, 1.5]))
    assert head.grad.item() == 1e6


def test_frozen_tied_and_zero_dimensional_parameters() -> None:
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    tied, scalar = nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor(1.0))
    optimizer = wrap([frozen, tied, scalar], tasks=("a", "b"))
    a = (tied * frozen).sum() * scalar + (tied * tied.detach()).sum()  # tied is used twice
    optimizer.join([a, -scalar]).backward()
    assert frozen.grad is None
    assert torch.equal(tied.grad, torch.full((2,), 2.0))  # only task a touched it
    assert scalar.grad.shape == ()
    assert scalar.grad.item() == pytest.approx(0.0)  # 2 and -1 conflict: each cancels the other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gradients_keep_their_dtype(dtype: torch.dtype) -> None:
    w = nn.Parameter(torch.zeros(2, dtype=dtype))
    optimizer = wrap([w], tasks=("a", "b"))
    optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1), dtype=dtype))).backward()
    assert w.grad.dtype == dtype
    assert w.grad.tolist() == [0.5, 1.5]


def test_mixed_dtypes_in_one_model() -> None:
    w, half = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = wrap([w, half], tasks=("a", "b"))
    optimizer.join([w.sum(), (half.float() - w).sum()]).backward()
    # half has one task; on w the gradients 1 and -1 cancel.
    assert (w.grad.item(), half.grad.item()) == (0.0, 1.0)
    assert half.grad.dtype == torch.bfloat16


def test_complex_parameters_count_as_pairs_of_reals() -> None:
    w = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
    optimizer = wrap([w], tasks=("a", "b"))
    real, imag = torch.view_as_real(w)[0]
    optimizer.join([real, imag - real]).backward()
    assert w.grad.item() == pytest.approx(0.5 + 1.5j)


@pytest.mark.parametrize("mixed", [False, True])
def test_sparse_gradients_give_the_dense_answer(mixed: bool) -> None:
    rows = {"a": torch.tensor([1, 1, 3]), "b": torch.tensor([3, 4])}
    grads = {}
    for sparse in (True, False):
        table = nn.Embedding(6, 2, sparse=sparse)
        nn.init.ones_(table.weight)
        optimizer = wrap([table.weight], tasks=("a", "b"))
        with optimizer.task("a"):
            (table(rows["a"]) * torch.tensor([1.0, 2.0])).sum().backward()
        with optimizer.task("b"):
            lookup = -table(rows["b"]).sum()
            (lookup + (table.weight.sum() if mixed else 0)).backward()
        optimizer.combine()
        grads[sparse] = table.weight.grad
    assert grads[True].is_sparse is not mixed
    if not mixed:
        assert grads[True].is_coalesced()
        assert grads[True].indices().tolist() == [[1, 3, 4]]
    assert torch.equal(grads[True].to_dense(), grads[False])


def test_sparse_gradients_accumulate_over_micro_batches() -> None:
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = wrap([table.weight], Sum(), tasks=("a", "b"))
    for last in (False, True):
        losses = [table(torch.tensor([1])).sum(), table(torch.tensor([1, 2])).sum()]
        optimizer.join(losses, combine=last).backward()
    assert table.weight.grad.to_dense()[:, 0].tolist() == [0, 4, 2, 0, 0, 0]


def test_a_gradient_outside_of_surgery_is_added_to() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    (10 * w.sum()).backward()
    with optimizer.task("a"):
        assert w.grad is None
        w[0].backward()
    assert w.grad.tolist() == [10, 10]
    with optimizer.task("b"):
        (w[1] - w[0]).backward()
    optimizer.combine()
    assert w.grad.tolist() == [10.5, 11.5]


def test_zeros_left_in_grad_do_not_make_heads_shared() -> None:
    """``zero_grad(set_to_none=False)`` leaves zeros; taken for gradients they would be compared."""
    model = TwoHeads()
    optimizer = wrap(list(model.parameters()), tasks=("a", "b"))
    optimizer.join(losses_of(model)).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.zero_grad(set_to_none=False)
    optimizer.join(losses_of(model)).backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert torch.equal(parameter.grad, expected[name])


def test_micro_batches_add_up_in_place() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    for _ in range(2):
        with optimizer.task("a"):
            w[0].backward()
        with optimizer.task("b"):
            (w[1] - w[0]).backward()
    optimizer.combine()
    assert w.grad.tolist() == [1.0, 3.0]


def test_a_gradient_that_is_a_view_is_copied() -> None:
    """DDP's bucket views are overwritten by the next backward; here, by hand."""
    w, bucket = nn.Parameter(torch.zeros(2)), torch.zeros(8)
    optimizer = wrap([w], Sum(), tasks=("a", "b"))
    for task, value in (("a", 1.0), ("b", 2.0)):
        with optimizer.task(task):
            w.sum().backward()
            bucket[:2] = value
            w.grad = bucket[:2]
    optimizer.combine()
    assert w.grad.tolist() == [3.0, 3.0]


def test_a_reused_gradient_buffer_is_refused() -> None:
    w, buffer = nn.Parameter(torch.zeros(2)), torch.ones(2)
    optimizer = wrap([w], tasks=("a", "b"))
    with optimizer.task("a"):
        w.grad = buffer
    with (
        pytest.raises(RuntimeError, match=r"task 'b'.*\[2\].*memory.*'a'"),
        optimizer.task("b"),
    ):
        w.grad = buffer


@pytest.mark.parametrize("method", [Sum(), PCGrad()], ids=repr)
def test_one_tensor_for_two_parameters(method: Method) -> None:
    """The gradients that autograd returns for ``w + v`` are one tensor."""
    start = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])]
    by_hand, plain = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    signs = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([-1.0, 1.0])}

    def loss(parameters: list[Tensor], task: str) -> Tensor:
        w, v = parameters
        return ((w + v) * signs[task]).square().sum()

    optimizer, other = (wrap(p, method, tasks=("a", "b")) for p in (by_hand, plain))
    for task in signs:
        with optimizer.task(task):
            grads = torch.autograd.grad(loss(by_hand, task), by_hand)
            assert grads[0].data_ptr() == grads[1].data_ptr()
            for parameter, grad in zip(by_hand, grads, strict=True):
                parameter.grad = grad
        with other.task(task):
            loss(plain, task).backward()
    for wrapper in (optimizer, other):
        wrapper.combine()
    assert [p.grad.tolist() for p in by_hand] == [p.grad.tolist() for p in plain]


def test_one_view_or_sparse_tensor_for_two_parameters() -> None:
    w, v, x, y = (nn.Parameter(torch.zeros(2, 2)) for _ in range(4))
    optimizer = wrap([w, v, x, y], Sum(), tasks=("a", "b"))
    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rows = torch.eye(2).to_sparse(1)
    with optimizer.task("a"):
        w.grad, v.grad = square, square.t()
        x.grad = y.grad = rows
    with optimizer.task("b"):
        w.sum().backward()
    optimizer.combine()
    assert w.grad.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert v.grad.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    x.grad.mul_(2)  # as clipping does
    assert y.grad.to_dense().tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_a_gradient_that_is_also_outside_of_surgery() -> None:
    w, v = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = wrap([w, v], Sum(), tasks=("a", "b"))
    v.grad = torch.ones(2)
    with optimizer.task("a"):
        w.grad = v.grad = w.new_ones(2)
    optimizer.discard()
    outside = v.grad
    with optimizer.task("a"):
        w.grad = outside
    with optimizer.task("b"):
        w.sum().backward()
    optimizer.combine()
    assert (w.grad.tolist(), v.grad.tolist()) == ([2.0, 2.0], [1.0, 1.0])


def test_one_tensor_for_two_parameters_in_two_tasks_is_refused() -> None:
    w, v = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = wrap([w, v], tasks=("a", "b"))
    grad = torch.ones(2)
    with optimizer.task("a"):
        w.grad = grad
    with pytest.raises(RuntimeError, match=r"task 'b'.*memory.*'a'.*clone"), optimizer.task("b"):
        v.grad = grad
    optimizer.zero_grad()
    with optimizer.task("b"):  # it belongs to nobody any more
        v.grad = grad
    with optimizer.task("b"):
        v.grad = grad


class Wrapper(torch.Tensor):
    """A tensor around another, without memory of its own: its address is 0."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        wrapper = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called: it is no repetition, and needs no copy")


def test_tensors_without_an_address_are_no_repetition() -> None:
    memory = GradientMemory()
    a, b = (Wrapper(torch.ones(2)) for _ in range(2))
    keys = [torch.zeros(2), torch.zeros(2)]
    assert a.data_ptr() == b.data_ptr() == 0
    assert memory.claim("a", dict(zip(keys, (a, b), strict=True)))[keys[1]] is b
    memory.claim("b", {keys[0]: a})


def test_strides_of_the_parameter_are_kept() -> None:
    conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
    x = torch.randn(1, 2, 5, 5).to(memory_format=torch.channels_last)
    optimizer = wrap(list(conv.parameters()), Sum(), tasks=("a", "b"))
    optimizer.join([conv(x).sum(), conv(x).square().sum()]).backward()
    grad = conv.weight.grad
    optimizer.zero_grad()
    (conv(x).sum() + conv(x).square().sum()).backward()
    assert torch.allclose(grad, conv.weight.grad, rtol=1e-5, atol=1e-5)
    assert grad.stride() == conv.weight.stride()


@pytest.mark.parametrize("name", ["z", "A", ""])
def test_unknown_tasks_are_refused_with_the_known_ones(name: str) -> None:
    optimizer = wrap([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=rf"{name!r}.*a, b, c"), optimizer.task(name):
        pass


def test_tasks_do_not_nest() -> None:
    w = nn.Parameter(torch.zeros(1))
    optimizer = wrap([w])
    with optimizer.task("a"):
        w.sum().backward()
        with pytest.raises(RuntimeError, match=r"task\('b'\).*inside task\('a'\)"):
            optimizer.task("b").__enter__()
    optimizer.combine()
    assert w.grad.item() == 1


def test_a_forgotten_backward_is_refused() -> None:
    w = nn.Parameter(torch.zeros(1))
    optimizer = wrap([w])
    with (
        pytest.raises(RuntimeError, match=r"no gradient.*'a'.*backward\(\) ran outside"),
        optimizer.task("a"),
    ):
        loss = w.sum()
    loss.backward()
    assert w.grad.item() == 1


# torch warns once per process that such a backward leaks.
@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_gradient_with_a_graph_is_refused() -> None:
    w = nn.Parameter(torch.ones(1))
    optimizer = wrap([w])
    with pytest.raises(RuntimeError, match="create_graph=True"), optimizer.task("a"):
        (w * w).sum().backward(create_graph=True)


def test_an_exception_drops_the_step_and_restores_grad() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    w.grad = torch.tensor([5.0, 5.0])
    with optimizer.task("a"):
        w[0].backward()
    with pytest.raises(MemoryError), optimizer.task("b"):  # noqa: PT012
        w[1].backward()
        raise MemoryError
    assert w.grad.tolist() == [5, 5]
    with pytest.raises(RuntimeError, match=r"nothing captured.*a: task 'b' raised MemoryError"):
        optimizer.combine()
    assert w.grad.tolist() == [5, 5]


def test_parameters_of_others_are_none_of_our_business() -> None:
    w, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = wrap([w], Sum(), tasks=("a", "b"))
    for task in ("a", "b"):
        with optimizer.task(task):
            (w + other).sum().backward()
    assert other.grad.item() == 2  # plain accumulation
    optimizer.combine()
    assert w.grad.item() == 2


def test_gradients_on_several_devices_are_refused() -> None:
    w, far = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, device="meta"))
    optimizer = wrap([w, far], PCGrad(), tasks=("a", "b"))
    with optimizer.task("a"):
        w.sum().backward()
    with optimizer.task("b"):
        far.sum().backward()
    with pytest.raises(ValueError, match="cpu, meta"):
        optimizer.combine()
    assert w.grad is None
    assert far.grad is None
