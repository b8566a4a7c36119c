"""Two processes of Lightning and of Fabric, started once for all of their scenarios."""

from __future__ import annotations

import functools
import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from tests.gradsurgery.problems import same
from tests.integration import ranks
from tests.integration.by_hand import TASKS, distance, fresh_model
from tests.integration.lightning_problem import (
    BATCHES,
    ROWS,
    Batch,
    Rows,
    decay,
    losses_of,
    plain_loop,
    surgery,
)

WORLD = 2
EPOCHS = 1

Weights = dict[str, Tensor]


def outcome(scenario: str) -> list[Any]:
    """What each rank has to say of a scenario: its weights, or ``{"error": text}``."""
    return [outcomes[scenario] for outcomes in _outcomes()]


def assert_together(scenario: str) -> None:
    """Both ranks hold what one process gets from the whole batches; the last word accumulates."""
    first, second = outcome(scenario)
    assert "error" not in first, first["error"]
    assert same(first, second)
    alone = plain_loop(EPOCHS, accumulate=int(scenario.split()[-1]))[0]
    for name, weight in alone.state_dict().items():
        assert torch.allclose(first[name], weight, atol=1e-6)


@functools.cache  # both files of tests ask, and starting costs seconds
def _outcomes() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return ranks.run(SCENARIOS, WORLD, Path(folder))


def part(rank: int) -> DataLoader[Batch]:
    """A rank's half of each batch of :func:`loader`, in its order."""
    half = ROWS // WORLD
    rows = [batch * ROWS + rank * half + row for batch in range(BATCHES) for row in range(half)]
    return DataLoader(Subset(Rows(), rows), batch_size=half, shuffle=False)


def _quiet() -> None:
    """Without the lines on devices, and a warning that Lightning causes in torch 2.13."""
    import lightning  # noqa: F401  # which sets the levels of its loggers

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)


def _lightning(module: str, accumulate: int = 1, **ddp: bool) -> Weights:
    """Fit one of the modules; where DDP gets no arguments, gradsurgery averages."""
    _quiet()
    from lightning.pytorch.strategies import DDPStrategy

    from tests.integration.lightning_modules import Automatic, Manual, trainer

    averages = not ddp
    built = {
        "automatic": lambda: Automatic(averages),
        "task": lambda: Manual(accumulate, averages=averages),
        "join": lambda: Manual(accumulate, joins=True, averages=averages),
    }[module]()
    fitted = trainer(
        Path(),  # nothing is written
        devices=WORLD,
        strategy=DDPStrategy(**ddp),
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate if module == "automatic" else 1,
        use_distributed_sampler=False,  # it would deal the rows in another way
    )
    fitted.fit(built, part(dist.get_rank()))
    weights: Weights = built.model.state_dict()
    return weights


def _fabric(joins: bool, accumulate: int = 1, **ddp: bool) -> Weights:
    """The loop of Fabric's recipe; where DDP gets no arguments, gradsurgery averages."""
    _quiet()
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    fabric = Fabric(accelerator="cpu", devices=WORLD, strategy=DDPStrategy(**ddp))
    fabric.launch()
    bare = fresh_model()
    optimizer = surgery(bare, process_group=None if ddp else dist.group.WORLD)
    schedule = decay(optimizer)
    model, optimizer = fabric.setup(bare, optimizer)
    for _ in range(EPOCHS):
        for index, batch in enumerate(data := part(fabric.global_rank)):
            last = (index + 1) % accumulate == 0 or index + 1 == len(data)
            with fabric.no_backward_sync(model, enabled=not ddp):
                if joins:
                    joined = optimizer.join(losses_of(model, batch), combine=last)
                    fabric.backward(joined / accumulate)
                else:
                    for task in TASKS:
                        with optimizer.task(task, sync=last):
                            loss = distance(model(batch[task], task), task)
                            fabric.backward(loss / accumulate)
            if not last:
                continue
            if not joins:
                optimizer.combine()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return bare.state_dict()


UNUSED = {"find_unused_parameters": True}
VIEWS = {"gradient_as_bucket_view": True}
SCENARIOS: dict[str, ranks.Scenario] = {
    "DDP: manual, 2": partial(_lightning, "task", 2, **UNUSED),
    "DDP: manual with bucket views, 1": partial(_lightning, "task", **UNUSED, **VIEWS),
    "DDP: manual join": partial(_lightning, "join", **UNUSED),
    "DDP: automatic": partial(_lightning, "automatic", **UNUSED),
    "DDP: fabric, 1": partial(_fabric, False, **UNUSED),
    "DDP: fabric, 2": partial(_fabric, False, 2, **UNUSED),
    "DDP: fabric join": partial(_fabric, True, **UNUSED),
    "ours: automatic, 1": partial(_lightning, "automatic"),
    "ours: automatic, 2": partial(_lightning, "automatic", 2),
    "ours: manual, 2": partial(_lightning, "task", 2),
    "ours: manual join, 2": partial(_lightning, "join", 2),
    "ours: fabric, 2": partial(_fabric, False, 2),
    "ours: fabric join, 1": partial(_fabric, True),
    "ours: fabric join, 2": partial(_fabric, True, 2),
}
