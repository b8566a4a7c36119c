"""A program, run through the library and through the reference side by side."""

from __future__ import annotations

import copy
import pickle
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradsurgery.pipeline
from gradsurgery import GradientSurgery, SurgeryWarning
from tests.gradsurgery.programs import program as calls
from tests.gradsurgery.programs.gradients import inputs_of, loss_of
from tests.gradsurgery.programs.program import TASKS, Batch, Program, Setup, Weight
from tests.gradsurgery.programs.reference import (
    Draw,
    Pair,
    Reference,
    RefusedError,
    by_digit,
    told_loss,
)
from tests.methods import METHODS

BASES = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=2.0**-6),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=2.0**-6, momentum=0.5, weight_decay=0.1),
    "adam": lambda groups: torch.optim.Adam(groups, lr=2.0**-6),
}


class Run:
    """The library's side of a program, and the reference beside it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.names = TASKS[: setup.tasks]
        self.reference = Reference(setup)
        self.parameters = {weight.name: parameter(weight) for weight in self.reference.weights}
        #: The base optimizers alone, stepping on what ``.grad`` holds.
        self.twins = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.twin_bases = self._bases(self.twins)
        self.optimizer = self._optimizer()
        self.draws: list[Draw] = []

    def _bases(self, parameters: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
        return [
            BASES[kind](
                [
                    {"params": [(weight.name, parameters[weight.name]) for weight in group]}
                    for group in groups
                ]
            )
            for kind, groups in zip(self.setup.bases, self.reference.groups, strict=True)
        ]

    def _optimizer(self) -> GradientSurgery:
        bases = self._bases(self.parameters)
        grouping = self.setup.grouping
        return GradientSurgery(
            bases if len(bases) > 1 else bases[0],
            METHODS[self.setup.method].make(0),
            tasks=self.names,
            grouping=by_digit if grouping == "by digit" else grouping,
            **dict(self.setup.options),
        )

    # ------------------------------------------------------------------ one call

    def call(self, call: calls.Call) -> None:
        """Make one call on both sides, and compare all that is public."""
        self.draws.clear()
        kind = type(call).__name__.lower()
        raised, refused = None, type(None)
        try:
            getattr(self, kind)(call)
        except (ArithmeticError, ValueError, RuntimeError) as error:
            raised = error
        try:
            getattr(self, f"{kind}_of_reference")(call)
        except RefusedError as error:
            refused = error.kind
        if raised is not None and refused is type(None):
            raise raised
        assert type(raised) is refused, f"{refused.__name__} was due, not {raised!r}"
        self.compare()

    def compare(self) -> None:
        """Compare every ``.grad``; from here on the reference has the library's."""
        reference = self.reference
        for weight in reference.weights:
            grad, due = self.parameters[weight.name].grad, reference.grads.get(weight.name)
            if grad is not None and due is None and reference.captures and not grad.any():
                continue  # by which the library notices that a batch was cleared
            assert (grad is None) == (due is None), f"{weight.name}.grad is {grad}, not {due}"
            if grad is None or due is None:
                continue
            assert grad.dtype == getattr(torch, weight.dtype)
            assert grad.is_sparse == due.sparse, f"{weight.name}.grad: sparse is {grad.is_sparse}"
            values = (grad.to_dense() if grad.is_sparse else grad).double().numpy()
            finite = np.isfinite(due.values)
            lost = not finite.all() and not np.isfinite(values).all()  # which of the two is torch's
            assert lost or (np.isfinite(values) == finite).all(), (
                f"{weight.name}.grad is {values}, not {due.values}"
            )
            error = float(np.linalg.norm(values[finite] - due.values[finite]))
            assert lost or error <= due.error, (
                f"{weight.name}.grad is off by {error:.3g}, allowed {due.error:.3g}:\n"
                f"{values}\nnot\n{due.values}"
            )
            due.values, due.error = values.copy(), 0.0

    # ------------------------------------------------------------------ each call

    def features(self) -> dict[int, Tensor]:
        """What the trunk returns, by the position of its parameter."""
        return {
            position: self.parameters[weight.name]
            * torch.from_numpy(inputs_of(weight)).to(getattr(torch, weight.dtype))
            for position, weight in enumerate(self.reference.weights)
            if weight.kind == "trunk"
        }

    def loss(self, batch: Batch, features: dict[int, Tensor] | None = None) -> Tensor:
        weights = self.reference.weights
        ordered = [self.parameters[weight.name] for weight in weights]
        return loss_of(batch, weights, ordered, self.features() if features is None else features)

    def at_features(self, call: calls.Join) -> bool:
        return call.features and any(w.kind == "trunk" for w in self.reference.weights)

    def join(self, call: calls.Join) -> None:
        features = self.features()
        losses = {self.names[b.task]: self.loss(b, features) for b in call.batches}
        listed = [losses[name] for name in self.names if name in losses]
        in_order = call.sequence and len(losses) == len(self.names)
        at = list(features.values()) if self.at_features(call) else None
        joined = self.optimizer.join(listed if in_order else losses, call.combine, features=at)
        assert joined.item() == sum(batch.value for batch in call.batches)
        (call.factor * joined).backward()

    def join_of_reference(self, call: calls.Join) -> None:
        self.reference.join(call, self.at_features(call), self.draws)

    def task(self, call: calls.Task) -> None:
        loss = self.loss(call.batch)
        told = loss if call.told else None
        with self.optimizer.task(self.names[call.batch.task], loss=told):
            loss.backward()
            if call.fails:
                raise ZeroDivisionError

    def task_of_reference(self, call: calls.Task) -> None:
        self.reference.task(call)

    def combine(self, call: calls.Combine) -> None:
        told = None
        if call.told is not None:
            told = {self.names[k]: told_loss(k) for k in call.told}
        self.optimizer.combine(losses=told, scale=call.scale)

    def combine_of_reference(self, call: calls.Combine) -> None:
        self.reference.combine(call, self.draws)

    def step(self, call: calls.Step) -> None:
        """Step on both sides: afterwards all weights are what the bases alone make of ``.grad``."""
        if not self.reference.captures and not all(map(_finite, self.parameters.values())):
            return
        self.optimizer.step()
        for name, p in self.parameters.items():
            self.twins[name].grad = None if p.grad is None else p.grad.clone()
        for base in self.twin_bases:
            base.step()
        for name, p in self.parameters.items():
            assert torch.equal(p, self.twins[name]), f"{name} is {p}, and alone {self.twins[name]}"

    def step_of_reference(self, call: calls.Step) -> None:
        if self.reference.captures:
            raise RefusedError(RuntimeError)

    def zerograd(self, call: calls.ZeroGrad) -> None:
        self.optimizer.zero_grad(set_to_none=call.set_to_none)

    def zerograd_of_reference(self, call: calls.ZeroGrad) -> None:
        self.reference.zero_grad(call.set_to_none)

    def discard(self, call: calls.Discard) -> None:
        self.optimizer.discard()

    def discard_of_reference(self, call: calls.Discard) -> None:
        self.reference.discard()

    def auxiliary(self, call: calls.Auxiliary) -> None:
        if not self.reference.captures:
            self.loss(call.batch).backward()

    def auxiliary_of_reference(self, call: calls.Auxiliary) -> None:
        if not self.reference.captures:
            self.reference.auxiliary(call.batch)

    def clip(self, call: calls.Clip) -> None:
        if self.reference.captures:
            return
        parameters = [p for p in self.parameters.values() if p.grad is not None]
        if all(_finite(p) and not p.grad.is_sparse for p in parameters):
            nn.utils.clip_grad_norm_(parameters, call.norm)

    def clip_of_reference(self, call: calls.Clip) -> None:
        if not self.reference.captures:
            self.reference.clip(call.norm)

    def reload(self, call: calls.Reload) -> None:
        self.compare_statistics()
        self.optimizer.discard()
        state, window = self.optimizer.state_dict(), self.optimizer.conflicts.state_dict()
        self.optimizer = self._optimizer()
        self.optimizer.load_state_dict(state)
        if call.statistics:
            self.optimizer.conflicts.load_state_dict(window)

    def reload_of_reference(self, call: calls.Reload) -> None:
        self.reference.fresh(call.statistics)

    def copy(self, call: calls.Copy) -> None:
        both = self.parameters, self.optimizer
        if call.how == "deepcopy":
            self.parameters, self.optimizer = copy.deepcopy(both)
        else:
            self.parameters, self.optimizer = pickle.loads(pickle.dumps(both))

    def copy_of_reference(self, call: calls.Copy) -> None:
        self.reference.copied()

    def addgroup(self, call: calls.AddGroup) -> None:
        name = call.weight.name
        self.parameters[name] = parameter(call.weight)
        self.twins[name] = self.parameters[name].detach().clone()
        base = 0 if call.first else len(self.twin_bases) - 1
        self.twin_bases[base].add_param_group({"params": [(name, self.twins[name])]})
        group = {"params": [(name, self.parameters[name])]}
        self.optimizer.add_param_group(group, self.optimizer.bases[0] if call.first else None)

    def addgroup_of_reference(self, call: calls.AddGroup) -> None:
        self.reference.add_group(call.weight, 0 if call.first else len(self.twin_bases) - 1)

    def reset(self, call: calls.Reset) -> None:
        self.compare_statistics()
        self.optimizer.conflicts.reset()

    def reset_of_reference(self, call: calls.Reset) -> None:
        self.reference.fresh_statistics()

    # ------------------------------------------------------------------ statistics and state

    def adopt_targets(self) -> None:
        """Compare GradVac's targets, and go on from the library's."""
        groups = self.optimizer.state_dict()["param_groups"]
        saved = next(group["surgery"] for group in groups if "surgery" in group)
        if "target" in saved:
            targets = torch.as_tensor(saved["target"], dtype=torch.float64).numpy()
            for index, name in enumerate(saved.get("segments", self.optimizer.conflicts.segments)):
                self.reference.rule.adopt(name, targets[index])

    def compare_statistics(self) -> None:
        """Compare the window's summary."""
        summary, due = self.optimizer.conflicts.summary(), self.reference.statistics
        assert summary["window"] == due.window
        assert summary["nonfinite"] == due.nonfinite
        assert summary.get("unmeasured", 0) == due.unmeasured
        assert summary["gradients"]["possible"] == due.gradients
        for row in summary["pairs"]:
            i, j = self.names.index(row["i"]), self.names.index(row["j"])
            _compare_pair(row, due.pair(i, j))
        for part in summary.get("by_segment", []):
            for row in part["pairs"]:
                i, j = self.names.index(row["i"]), self.names.index(row["j"])
                _compare_pair(row, due.pair(i, j, part["segment"]))
        for k, name in enumerate(self.names):
            norms = [step[k] for step in due.norms if step[k] > 0]
            expected = pytest.approx(np.mean(norms), rel=1e-4) if norms else None
            assert summary["norms"][name] == expected
        if due.changes and None not in due.changes:
            assert summary["change"]["mean"] == pytest.approx(
                np.mean(due.changes), rel=1e-2, abs=2e-3
            )


def _compare_pair(row: dict, due: Pair) -> None:
    name = f"pair {row['i']}, {row['j']}"
    assert row["possible"] == due.possible, name
    assert row["conflicts"] in due.conflicts, f"{name}: {row['conflicts']}, not {due.conflicts}"
    if due.altered is not None and row["altered"] is not None:
        assert row["altered"] in due.altered, f"{name}: {row['altered']}, not {due.altered}"
    if due.cosines:
        ends = min(due.cosines), max(due.cosines)
        assert row["cosine"]["mean"] == pytest.approx(np.mean(due.cosines), abs=1e-5), name
        assert (row["cosine"]["min"], row["cosine"]["max"]) == pytest.approx(ends, abs=1e-5), name
    else:
        assert row["cosine"] == {"mean": None, "min": None, "max": None}, name


def _finite(parameter: Tensor) -> bool:
    grad = parameter.grad
    if grad is None:
        return True
    return bool((grad.coalesce().values() if grad.is_sparse else grad).isfinite().all())


def parameter(weight: Weight) -> nn.Parameter:
    """The parameter, with values that its name decides."""
    generator = torch.Generator().manual_seed(sum(map(ord, weight.name)))
    values = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return nn.Parameter(values.to(getattr(torch, weight.dtype)))


def run(program: Program) -> Run:
    """Run a program, and compare after each call."""
    side_by_side = Run(program.setup)

    def watched(draw):
        def spy(rng: Tensor, tasks: int) -> tuple[Tensor, Tensor]:
            values, after = draw(rng, tasks)
            side_by_side.draws.append(
                Draw(rng.numpy().tobytes(), values.numpy().copy(), after.numpy().tobytes())
            )
            return values, after

        return spy

    patches = {
        name: watched(getattr(gradsurgery.pipeline, name))
        for name in ("visiting_order", "normal_draws")
    }
    with mock.patch.multiple(gradsurgery.pipeline, **patches), warnings.catch_warnings():
        warnings.simplefilter("ignore", SurgeryWarning)  # programs misuse the library on purpose
        for call in program.calls:
            side_by_side.call(call)
            if isinstance(call, calls.Join | calls.Combine):
                side_by_side.adopt_targets()
        side_by_side.compare_statistics()
    return side_by_side
