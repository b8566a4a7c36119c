"""Checkpoints that somebody damaged: refused and nothing changed, or accepted and fit to train.

A law over all methods with a state, and all places of a state: a key that is missing, a value of
another type, a tensor of another shape, dtype or range. The number of examples grows with
``--hypothesis-profile=long``.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradsurgery import GradientSurgery, SurgeryWarning
from tests.gradsurgery.problems import TwoHeads, losses_of, train_heads
from tests.methods import METHODS

Path = tuple[Any, ...]

#: Methods with a state of each kind, and options: (row of METHODS, options of GradientSurgery).
STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "pcgrad": ("pcgrad", {}),
    "reused weights": ("pcgrad", {"every": 3}),
    "gradvac": ("gradvac", {}),
    "uncertainty": ("uncertainty", {"observe_every": 3}),
    "dwa": ("dwa", {}),
    "famo": ("famo", {}),
    "gradnorm": ("gradnorm", {}),
    "smoothing": ("upgrad", {"smoothing": 0.5}),
}

#: How an error that names its cause is raised; a KeyError of somebody's dict is none.
CLEAR = (ValueError, TypeError, RuntimeError)

JUNK = [None, "damaged", -1, 7.0, math.nan, [], {}, [1.0, 2.0], b"\x00", torch.tensor(math.nan)]


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """All places within nested dicts and lists."""
    if isinstance(value, dict | list | tuple):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*at, key)
            if numbers(value[key]) is None:
                yield from paths(value[key], (*at, key))


def _reshaped(tensor: Tensor) -> Tensor:
    return torch.cat([tensor.reshape(-1), tensor.reshape(-1)])


def numbers(value: Any) -> Tensor | None:
    """A tensor, or a nested list of numbers, as a tensor; None for anything else."""
    if isinstance(value, Tensor):
        return value
    try:
        tensor = torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else None
    except (TypeError, ValueError):
        return None
    return tensor if tensor is not None and tensor.numel() else None


#: What becomes of a tensor: other shapes, ranges and dtypes.
TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "flattened": lambda t: t.reshape(-1),
    "twice as long": _reshaped,
    "empty": lambda t: t.new_zeros(0),
    "another K": lambda t: torch.zeros([3 for _ in t.shape], dtype=t.dtype),
    "more segments": lambda t: torch.cat([t, t]) if t.dim() else t,
    "NaN": lambda t: torch.full(t.shape, math.nan, dtype=torch.float64),
    "infinite": lambda t: torch.full(t.shape, math.inf, dtype=torch.float64),
    "7": lambda t: torch.full_like(t, 7),
    "-7": lambda t: torch.full(t.shape, -7.0, dtype=torch.float64),
    "1e300": lambda t: torch.full(t.shape, 1e300, dtype=torch.float64),
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
}


@st.composite
def damages(draw: st.DrawFn, state: Any, places: list[Path]) -> tuple[Path, str, Any]:
    """A damaged copy of ``state``, with the place and kind of damage."""
    damaged = copy.deepcopy(state)
    place = draw(st.sampled_from(places))
    parent = damaged
    for key in place[:-1]:
        parent = parent[key]
    value = parent[place[-1]]
    kinds = ["missing", *map(repr, JUNK)]
    tensor = numbers(value)
    if tensor is not None:
        kinds += list(TENSORS) * 2
    kind = draw(st.sampled_from(kinds))
    if kind == "missing":
        del parent[place[-1]]
    elif kind in TENSORS:
        worse = TENSORS[kind](tensor)
        parent[place[-1]] = worse.tolist() if isinstance(value, list) else worse
    else:
        parent[place[-1]] = JUNK[[repr(junk) for junk in JUNK].index(kind)]
    return place, kind, damaged


def trained(name: str, steps: int = 3) -> tuple[TwoHeads, GradientSurgery]:
    """A small network that has trained, with layers as segments."""
    torch.manual_seed(0)
    model = TwoHeads()
    method, options = STATES[name]
    base = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    if not {"smoothing", "every"} & options.keys():
        options = {**options, "grouping": "layer"}
    optimizer = GradientSurgery(base, METHODS[method].make(0), tasks=("a", "b"), **options)
    train_heads(model, optimizer, range(steps))
    return model, optimizer


def refused(load: Callable[[Any], None], state: Any) -> bool:
    """Whether ``load`` refuses the state, with an error that says why."""
    try:
        load(state)
    except CLEAR as error:
        return bool(str(error).strip())
    return False


def plain(value: Any) -> Any:
    """A state that compares equal to itself, also where numbers are NaN."""
    if isinstance(value, Tensor):
        return str(value.dtype), str(value.tolist())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else repr(value)


def check_load(name: str, damaged: Any) -> None:
    """Load a damaged state into an optimizer with a task under way."""
    model, optimizer = trained(name, steps=2)
    with optimizer.task("a"):
        losses_of(model)["a"].backward()
    before, window = plain(optimizer.state_dict()), plain(optimizer.conflicts.state_dict())
    if refused(optimizer.load_state_dict, damaged):
        assert plain(optimizer.state_dict()) == before, "a refused state changed the optimizer"
        assert plain(optimizer.conflicts.state_dict()) == window
        with pytest.raises(RuntimeError, match="captured gradients"):
            optimizer.step()  # what was captured is still there
        return
    optimizer.zero_grad()
    for seed in range(3):
        optimizer.join(losses_of(model, seed)).backward()
        for parameter in model.parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.conflicts.summary()["nonfinite"] == 0
    _, fresh = trained(name, steps=0)
    fresh.load_state_dict(optimizer.state_dict())
    assert plain(fresh.state_dict()) == plain(optimizer.state_dict())


#: A damage is in one place: there is nothing to shrink.
examples = settings(max_examples=4 * settings.default.max_examples, phases=[Phase.generate])
every_state = pytest.mark.parametrize("name", STATES)


@every_state
@examples
@given(data=st.data())
def test_a_damaged_state_is_refused_whole_or_trains(name: str, data: st.DataObject) -> None:
    state = trained(name)[1].state_dict()
    places = [place for place in paths(state) if "surgery" in place]
    _, _, damaged = data.draw(damages(state, places))
    check_load(name, damaged)


@every_state
def test_an_undamaged_state_loads(name: str) -> None:
    """The law above is not kept by refusing everything."""
    _, optimizer = trained(name)
    _, fresh = trained(name, steps=0)
    fresh.load_state_dict(optimizer.state_dict())
    assert plain(fresh.state_dict()) == plain(optimizer.state_dict())


@examples
@given(data=st.data())
def test_a_damaged_window_is_refused_whole_or_counts(data: st.DataObject) -> None:
    state = trained("gradvac")[1].conflicts.state_dict()
    model, optimizer = trained("gradvac", steps=1)
    before = plain(optimizer.conflicts.state_dict())
    _, _, damaged = data.draw(damages(state, list(paths(state))))
    if refused(optimizer.conflicts.load_state_dict, damaged):
        assert plain(optimizer.conflicts.state_dict()) == before
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SurgeryWarning)  # of segments with other names
        train_heads(model, optimizer, range(2))
    summary = optimizer.conflicts.summary()
    json.dumps(summary, allow_nan=False)
    for pair in summary["pairs"]:
        assert 0 <= pair["conflicts"] <= pair["possible"]
        assert pair["altered"] is None or 0 <= pair["altered"] <= pair["possible"]
        mean = pair["cosine"]["mean"]
        assert mean is None or -1 <= mean <= 1
