"""Lightning's Trainer with several bases, methods of degree 0, and methods of the losses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")

from gradsurgery import GradientSurgery, GradVac, Method, NashMTL, UncertaintyWeighting
from tests.gradsurgery.problems import same
from tests.integration.by_hand import TASKS, fresh_model
from tests.integration.lightning_modules import Automatic, Manual, trainer
from tests.integration.lightning_problem import BATCHES, decay, loader, losses_of

pytestmark = [
    # Lightning asks torch for a class that torch 2.13 calls deprecated.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    # Advice on speed, given where there are more than two cores.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]

CLIP = 0.3


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Without Lightning's lines on devices, precision and services."""
    caplog.set_level(logging.WARNING, logger="lightning.pytorch")


def one(model: nn.Module, method: Method) -> GradientSurgery:
    base = torch.optim.SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    return GradientSurgery(base, method, tasks=TASKS)


def several(model: nn.Module, method: Method) -> GradientSurgery:
    """Muon for the trunk's matrices, AdamW for the rest."""
    named = list(model.named_parameters())
    hidden = [name for name, p in named if p.dim() == 2 and "trunk" in name]
    muon = torch.optim.Muon([(name, p) for name, p in named if name in hidden], lr=0.02)
    rest = torch.optim.AdamW([(name, p) for name, p in named if name not in hidden], lr=0.02)
    return GradientSurgery([muon, rest], method, tasks=TASKS)


Build = Callable[[nn.Module], GradientSurgery]
CASES: dict[str, Build] = {
    "several bases": lambda model: several(model, GradVac(beta=0.3, seed=1)),
    "degree 0": lambda model: one(model, NashMTL()),
    "weights of losses": lambda model: one(model, UncertaintyWeighting(lr=0.1)),
    "several, of degree 0": lambda model: several(model, NashMTL()),
}
every_case = pytest.mark.parametrize("case", CASES)


def configured(kind: type[Any], case: str, *arguments: Any) -> Any:
    """A module whose optimizer is the case's."""

    class CaseModule(kind):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = CASES[case](self.model)
            schedule = {"scheduler": decay(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    return CaseModule(*arguments)


def joined_loop(case: str, accumulate: int) -> tuple[nn.Module, GradientSurgery]:
    """Train two epochs without a framework."""
    model = fresh_model()
    optimizer = CASES[case](model)
    schedule = decay(optimizer)
    for _ in range(2):
        for number, batch in enumerate(loader(), 1):
            last = number % accumulate == 0 or number == BATCHES
            joined = optimizer.join(losses_of(model, batch), combine=last)
            (joined / accumulate).backward()
            if last:
                # In the order that Lightning has them in, for the same rounding.
                ordered = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(ordered, CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return model, optimizer


@every_case
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("manual", [True, False])
def test_lightning_is_the_plain_loop(
    case: str, accumulate: int, manual: bool, tmp_path: Path
) -> None:
    if manual:
        module = configured(Manual, case, accumulate, True, CLIP)
        options: dict[str, Any] = {}
    else:
        module = configured(Automatic, case)
        options = {"gradient_clip_val": CLIP, "accumulate_grad_batches": accumulate}
    trainer(tmp_path, max_epochs=2, **options).fit(module, loader())
    model, optimizer = joined_loop(case, accumulate)
    assert same(module.model.state_dict(), model.state_dict())
    assert same(module.trainer.optimizers[0].state_dict(), optimizer.state_dict())


@every_case
def test_a_resumed_fit_is_the_one_that_never_stopped(case: str, tmp_path: Path) -> None:
    whole, first, second = (configured(Automatic, case) for _ in range(3))
    trainer(tmp_path, max_epochs=2).fit(whole, loader())
    stopped = trainer(tmp_path, max_epochs=1)
    stopped.fit(first, loader())
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, max_epochs=2).fit(second, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert same(second.model.state_dict(), whole.model.state_dict())
