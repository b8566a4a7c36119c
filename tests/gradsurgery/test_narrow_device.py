"""Surgery on a device without float64: the same as on the CPU, to float32's rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, Method
from gradsurgery.kernels import eager
from gradsurgery.transfer import float64, float64_device
from tests.gradsurgery.narrow_device import DEVICE, NarrowTensor, narrow_device
from tests.gradsurgery.problems import TwoHeads
from tests.methods import METHODS, every_method


@pytest.fixture
def device() -> Iterator[Any]:
    with narrow_device() as factories:
        yield factories


def columns(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[list[Tensor | None]]:
    """Gradients [P][3]: long, short and many small ones, one that a task does not have."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5000), (70_000,), *[(7,)] * 20, (2, 3)]
    grads: list[list[Tensor | None]] = [
        [(scale * torch.randn(shape, generator=generator)).to(dtype) for _ in range(3)]
        for shape in shapes
    ]
    grads[1][2] = None
    return grads


def there(columns: list[list[Tensor | None]]) -> list[list[Tensor | None]]:
    return [[None if grad is None else grad.to(DEVICE) for grad in column] for column in columns]


def test_the_device_is_what_it_says(device: Any) -> None:
    """Or the tests below would show nothing."""
    values = torch.ones(3).to(DEVICE)
    assert values.device == DEVICE
    assert isinstance(values * 2, NarrowTensor)
    for make in (
        lambda: values.double(),
        lambda: values.to("cpu", torch.float64),
        lambda: torch.ones(3, dtype=torch.float64).to(DEVICE),
        lambda: torch.zeros(3, dtype=torch.float64, device=DEVICE),
    ):
        with pytest.raises(TypeError, match="no float64"):
            make()
    assert float64_device(DEVICE) == torch.device("cpu")
    assert float64(values).tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gram_matrix_takes_one_copy(dtype: torch.dtype, device: Any) -> None:
    grads = columns(dtype)
    segments = [n % 2 for n in range(len(grads))]
    expected = eager.gram(grads, segments, 2, 3)
    narrow = there(grads)
    before = device.read
    gram = eager.gram(narrow, segments, 2, 3)
    assert device.read == before + 1
    assert (gram.dtype, gram.device.type) == (torch.float64, "cpu")
    torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-15, 1e15, 1e30])
def test_squares_beyond_float32(scale: float, device: Any) -> None:
    grads = columns(scale=scale)
    expected = eager.gram(grads, [0] * len(grads), 1, 3)
    gram = eager.gram(there(grads), [0] * len(grads), 1, 3)
    torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


def test_zero_and_non_finite_gradients(device: Any) -> None:
    grads: list[list[Tensor | None]] = [[torch.zeros(5), torch.ones(5)]]
    assert eager.gram(there(grads), [0], 1, 2).tolist() == [[[0, 0], [0, 5]]]
    assert eager.gram(there([[torch.ones(0), torch.ones(0)]]), [0], 1, 2).tolist() == [[[0, 0]] * 2]
    for bad in (torch.inf, torch.nan):
        grads = [[torch.full((5,), bad), torch.ones(5)]]
        gram = eager.gram(there(grads), [0], 1, 2)
        assert not gram[0, 0, 0].isfinite()
        assert gram[0, 1, 1] == 5


@pytest.mark.parametrize("weights", [[0.5, 2.0, -1.0], [1e35, 1.0, 1e-35]])
def test_the_combination(weights: list[float], device: Any) -> None:
    """Also with weights that float32 does not hold well."""
    grads = columns()
    if weights[0] > 1:
        grads = [[g if g is None or k else g * 1e-35 for k, g in enumerate(c)] for c in grads]
    narrow, factors = there(grads), torch.tensor([weights], dtype=torch.float64)
    expected = eager.combine_(grads, factors, [0] * len(grads))
    for ours, theirs in zip(
        eager.combine_(narrow, factors, [0] * len(grads)), expected, strict=True
    ):
        assert ours is not None
        torch.testing.assert_close(ours.cpu(), theirs)


def train(model: nn.Module, method: Method, place: torch.device, joined: bool) -> GradientSurgery:
    """Three steps, one of them of one task."""
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = GradientSurgery(base, method, tasks=("a", "b"), grouping="layer")
    for step in range(3):
        losses = losses_on(model, step, place)
        if step == 1:
            del losses["b"]
        if joined:  # a joined loss is a subclass of its own, which the device's cannot become
            optimizer.join({name: loss.cpu() for name, loss in losses.items()}).backward()
        else:
            for name, loss in losses.items():
                with optimizer.task(name, loss=loss):
                    loss.backward()
            optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def losses_on(model: nn.Module, step: int, place: torch.device) -> dict[str, Tensor]:
    batches = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(step)).to(place)
    signs = {"a": 1.0, "b": -1.0}
    return {
        task: (model(batches[n], task) - sign).square().mean()
        for n, (task, sign) in enumerate(signs.items())
    }


@pytest.mark.parametrize("joined", [True, False])
@every_method
def test_training_is_the_cpus(name: str, joined: bool, device: Any) -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    twin = copy.deepcopy(model)
    for module in twin.modules():
        for key, value in list(module._parameters.items()):
            if value is not None:
                module._parameters[key] = nn.Parameter(value.detach().to(DEVICE))
    expected = train(model, METHODS[name].make(1), torch.device("cpu"), joined)
    optimizer = train(twin, METHODS[name].make(1), DEVICE, joined)
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert ours.device == DEVICE
        torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=1e-4, atol=1e-5)
    assert optimizer.conflicts.summary()["gradients"] == expected.conflicts.summary()["gradients"]
    torch.testing.assert_close(
        optimizer.conflicts.scalars(), expected.conflicts.scalars(), rtol=1e-4, atol=1e-5
    )
