"""Weights of the losses: values by hand, and where learning drives them."""

from __future__ import annotations

import math

import pytest
import torch

from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.model.weighting import WEIGHTINGS, build_weighting
from bert_mtl_demo.tasks import TASKS, resolve

TASKS_OF_STUDY = resolve(["sst", "para", "sts"])
SIZES = {"sst": 2, "para": 30, "sts": 4}


def test_unweighted_is_the_very_loss():
    loss = torch.tensor(2.5, requires_grad=True)
    weigh = build_weighting("none", TASKS_OF_STUDY)
    assert weigh("sst", loss, SIZES) is loss
    assert not weigh.state_dict()


@pytest.mark.parametrize("spread", [-1.5, 0.0, 0.7])
def test_uncertainty_by_hand(spread):
    weigh = build_weighting("uncertainty", TASKS_OF_STUDY)
    with torch.no_grad():
        for parameter in weigh.parameters():
            parameter.fill_(spread)
    sigma2 = math.exp(spread)
    loss = torch.tensor(3.0)
    for name in ("sst", "para"):
        expected = 3.0 / sigma2 + math.log(math.sqrt(sigma2))
        assert weigh(name, loss, SIZES).item() == pytest.approx(expected)
    expected = 3.0 / (2 * sigma2) + math.log(math.sqrt(sigma2))
    assert weigh("sts", loss, SIZES).item() == pytest.approx(expected)
    assert weigh("sts", loss, SIZES).shape == ()


@pytest.mark.parametrize(("name", "best"), [("sst", 2 * 0.8), ("sts", 0.8)])
def test_uncertainty_settles_where_the_formula_says(name, best):
    """d/ds = 0 at exp(s) = 2 L for classes and L for similarity."""
    weigh = build_weighting("uncertainty", TASKS_OF_STUDY)
    optimizer = torch.optim.Adam(weigh.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        weigh(name, torch.tensor(0.8), SIZES).backward()
        optimizer.step()
    assert weigh.log_variance[name].exp().item() == pytest.approx(best, rel=1e-2)
    others = [weigh.log_variance[task.name] for task in TASKS_OF_STUDY if task.name != name]
    assert all(parameter.item() == 0.0 for parameter in others)


def test_uncertainty_is_in_the_state():
    state = build_weighting("uncertainty", TASKS_OF_STUDY).state_dict()
    assert sorted(state) == [f"log_variance.{name}" for name in ("para", "sst", "sts")]


def test_inverse_share_by_hand():
    weigh = build_weighting("inverse_share", TASKS_OF_STUDY)
    loss = torch.tensor(2.0)
    found = {name: weigh(name, loss, SIZES).item() for name in SIZES}
    assert found == pytest.approx({"sst": 2 * 34 / 2, "para": 2 * 6 / 30, "sts": 2 * 32 / 4})
    even = {name: weigh(name, loss, dict.fromkeys(SIZES, 8)).item() for name in SIZES}
    assert even == dict.fromkeys(SIZES, 4.0)  # equal batches: all alike, times the others' number


def test_inverse_share_of_one_task_is_refused():
    with pytest.raises(ConfigError, match=r"tasks = sts: .* --weighting none"):
        build_weighting("inverse_share", [TASKS["sts"]])


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_keeps_the_graph(name):
    loss = torch.tensor(2.0, requires_grad=True)
    build_weighting(name, TASKS_OF_STUDY)("para", loss * 3, SIZES).backward()
    assert loss.grad.item() > 0
