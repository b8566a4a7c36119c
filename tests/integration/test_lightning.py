"""Lightning's Trainer is bitwise the plain loop; a resumed fit is the one that never stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from tests.gradsurgery.problems import same
from tests.integration import lightning_ranks
from tests.integration.by_hand import Net, same_bits
from tests.integration.lightning_modules import Automatic, Manual, trainer
from tests.integration.lightning_problem import loader, plain_loop

pytestmark = [
    # Lightning asks torch for a class that torch 2.13 calls deprecated.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    # Advice on speed, given where there are more than two cores.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]

CLIP = 0.3  # binds in this problem


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Without Lightning's lines on devices, precision and services."""
    caplog.set_level(logging.WARNING, logger="lightning.pytorch")


def fit(module: Any, folder: Path, **options: Any) -> Any:
    fitted = trainer(folder, max_epochs=2, **options)
    fitted.fit(module, loader())
    return fitted


def assert_equal(module: Any, model: Net, optimizer: torch.optim.Optimizer) -> None:
    """Weights, the base's state, the schedule, the targets and the visiting order, to the bit."""
    assert same(module.model.state_dict(), model.state_dict())
    assert same(module.trainer.optimizers[0].state_dict(), optimizer.state_dict())


@pytest.mark.parametrize(
    ("options", "same_options", "steps"),
    [
        ({}, {}, 14),
        ({"gradient_clip_val": CLIP}, {"clip": CLIP}, 14),
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}, 8),
        (
            {"accumulate_grad_batches": 3, "gradient_clip_val": CLIP},
            {"accumulate": 3, "clip": CLIP},
            6,
        ),
        (
            {"accumulate_grad_batches": 2, "limit_train_batches": 5},
            {"accumulate": 2, "batches": list(loader())[:5]},
            6,
        ),
        ({"precision": "bf16-mixed"}, {"precision": torch.bfloat16}, 14),
    ],
    ids=["plain", "clip", "accumulate", "both", "short epoch", "bf16"],
)
def test_automatic_is_the_plain_loop(
    options: dict[str, Any], same_options: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    module = Automatic()
    fitted = fit(module, tmp_path, **options)
    assert_equal(module, *plain_loop(2, **same_options))
    assert fitted.global_step == steps
    if options:  # the option is one that is seen
        without = plain_loop(2)[0]
        assert not same_bits(without, module.model)


# The scaler skips the first steps, and the schedule's do not wait for it: torch says so.
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step:UserWarning")
def test_a_gradient_scaler_is_the_plain_loop_with_one(tmp_path: Path) -> None:
    """As ``precision="16-mixed"`` has it on a GPU."""
    from lightning.pytorch.plugins import MixedPrecision

    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**30) for _ in range(2)]
    module = Automatic()
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scalers[0])
    fit(module, tmp_path, plugins=plugin, gradient_clip_val=CLIP)
    plain = plain_loop(2, precision=torch.float16, clip=CLIP, scaler=scalers[1])
    assert_equal(module, *plain)
    assert scalers[0].state_dict() == scalers[1].state_dict()
    assert plain[1].conflicts.summary()["nonfinite"] > 0  # it overflowed, and went on


@pytest.mark.parametrize("joins", [False, True], ids=["task", "join"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, CLIP])
def test_manual_is_the_plain_loop(
    joins: bool, accumulate: int, clip: float | None, tmp_path: Path
) -> None:
    module = Manual(accumulate, joins, clip)
    fitted = fit(module, tmp_path)
    assert_equal(module, *plain_loop(2, accumulate=accumulate, clip=clip))
    assert fitted.global_step == 2 * -(-7 // accumulate)


def test_the_schedule_moves_once_a_step(tmp_path: Path) -> None:
    module = Automatic()
    fit(module, tmp_path, accumulate_grad_batches=2)
    expected = [0.05 * 0.9**step for step in (0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6, 7)]
    assert module.rates == pytest.approx(expected)


def test_the_conflicts_reach_the_logger(tmp_path: Path) -> None:
    module = Automatic()
    fitted = fit(module, tmp_path)
    logged = fitted.callback_metrics
    assert "surgery/cosine/a-b" in logged
    assert logged.keys() == module.optimizers(use_pl_optimizer=False).conflicts.scalars().keys()


@pytest.mark.parametrize("module", [Automatic, Manual])
def test_a_resumed_fit_is_bitwise_the_one_that_never_stopped(module: Any, tmp_path: Path) -> None:
    uninterrupted, first, second = module(), module(), module()
    fit(uninterrupted, tmp_path)
    stopped = trainer(tmp_path, max_epochs=1)
    stopped.fit(first, loader())
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)  # nothing in it needs code to load
    resumed = trainer(tmp_path, max_epochs=2)
    resumed.fit(second, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert_equal(second, uninterrupted.model, uninterrupted.trainer.optimizers[0])
    assert resumed.global_step == 14
    if module is Automatic:  # which keeps the statistics in the checkpoint as well
        surgeons = [m.optimizers(use_pl_optimizer=False) for m in (uninterrupted, second)]
        assert surgeons[0].conflicts.summary() == surgeons[1].conflicts.summary()


def test_combining_too_late_is_an_error(tmp_path: Path) -> None:
    class Late(Automatic):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, 0)

    with pytest.raises(RuntimeError, match=r"tasks a, b, c have captured gradients"):
        fit(Late(), tmp_path, accumulate_grad_batches=2)


# ------------------------------------------------------------------------------- two processes


@pytest.mark.parametrize("scenario", ["DDP: manual, 2", "DDP: manual with bucket views, 1"])
def test_ddp_averages_each_task(scenario: str) -> None:
    lightning_ranks.assert_together(scenario)


@pytest.mark.parametrize("scenario", ["DDP: automatic", "DDP: manual join"])
def test_ddp_refuses_several_backwards_after_its_one_forward(scenario: str) -> None:
    for outcome in lightning_ranks.outcome(scenario):
        assert "mark a variable ready only once" in outcome["error"]


@pytest.mark.parametrize("name", ["automatic, 1", "automatic, 2", "manual, 2", "manual join, 2"])
def test_gradsurgery_averages_in_every_way(name: str) -> None:
    lightning_ranks.assert_together(f"ours: {name}")
