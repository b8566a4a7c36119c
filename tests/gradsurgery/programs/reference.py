"""Surgery in float64, as the docs promise it, on plain arrays: what a program is compared with.

Everything here follows from the docs of ``GradientSurgery`` and the page "How it works"; no line is
shared with the library. Chance is the exception: visiting orders and normal draws are the library's
own, and the reference says when they are drawn and from which state of the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch

from gradsurgery import LossWeighting
from tests.gradsurgery.programs.gradients import inputs_of, uses
from tests.gradsurgery.programs.program import Batch, Combine, Join, Setup, Task, Weight
from tests.gradsurgery.programs.rules import RULES, Decision, Facts, Rule, Segment, Smoothed
from tests.methods import METHODS

Array = np.ndarray

ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}
#: What a Gram matrix is known to, relative to the norms.
PRECISION = {"float64": 1e-14, "float32": 2e-7, "bfloat16": 2e-7}


@dataclass(frozen=True)
class Draw:
    """What the library drew: the generator's state before and after, and the numbers."""

    before: bytes
    values: Array
    after: bytes


@dataclass
class Grad:
    """A gradient, and how far the library's may be from it."""

    values: Array
    sparse: bool = False
    error: float = 0.0

    def finite(self) -> bool:
        return bool(np.isfinite(self.values).all())


def rounded(values: Array, dtype: str) -> Array:
    """``values`` as a dtype holds them."""
    tensor = torch.from_numpy(np.array(values, dtype=np.float64))
    return tensor.to(getattr(torch, dtype)).double().numpy()


def by_digit(name: str) -> str:
    """A grouping by the last digit of a name."""
    return "even" if name[-1] in "02468" else "odd"


#: Each grouping, as the docs define it, for names such as "1.w0".
LABELS: dict[str, Callable[[str], str]] = {
    "model": lambda name: "model",
    "layer": lambda name: name.split(".")[0],
    "tensor": lambda name: name,
    "by digit": by_digit,
}


@dataclass
class Bounds:
    """A count: at least ``low``, and ``high`` where rounding decides."""

    low: int = 0
    high: int = 0

    def add(self, yes: bool, certain: bool) -> None:
        self.low += yes and certain
        self.high += yes or not certain

    def __contains__(self, value: int) -> bool:
        return self.low <= value <= self.high


@dataclass
class Pair:
    """An ordered pair of tasks."""

    possible: int = 0
    conflicts: Bounds = field(default_factory=Bounds)
    altered: Bounds | None = field(default_factory=Bounds)
    cosines: list[float] = field(default_factory=list)


@dataclass
class Statistics:
    """The window."""

    tasks: int
    window: int = 0
    nonfinite: int = 0
    unmeasured: int = 0
    gradients: int = 0
    changes: list[float | None] = field(default_factory=list)
    norms: list[list[float]] = field(default_factory=list)
    pairs: dict[tuple[int, int], Pair] = field(default_factory=dict)
    by_segment: dict[tuple[str, int, int], Pair] = field(default_factory=dict)

    def pair(self, i: int, j: int, segment: str | None = None) -> Pair:
        if segment is None:
            return self.pairs.setdefault((i, j), Pair())
        return self.by_segment.setdefault((segment, i, j), Pair())


class RefusedError(Exception):
    """The library is to refuse this, with an error of the type ``kind``."""

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__(kind)
        self.kind = kind


class Reference:
    """The state of surgery.

    Attributes:
        weights: the parameters, in the order of the groups of all bases.
        grads: ``.grad``, by name.
        captures: by task, by name.
    """

    def __init__(self, setup: Setup) -> None:
        self.tasks = setup.tasks
        self.groups = [[list(group) for group in groups] for groups in setup.groups]
        options = dict(setup.options)
        self.rule = self._rule(setup.method, options)
        self.reduction = options.get("reduction", "sum")
        self.every = options.get("observe_every")
        self.label = LABELS[setup.grouping]
        self.grads: dict[str, Grad] = {}
        self.rng = torch.Generator().manual_seed(0).get_state().numpy().tobytes()
        self.since_measured = 0
        self.statistics = Statistics(self.tasks)
        #: How many updates were compared, and how many left open as ill-conditioned.
        self.compared = self.open = 0
        self.forget()

    def _rule(self, method: str, options: dict) -> Rule:
        rule = RULES[method]()
        library = METHODS[method].make(0)
        assert rule.degree == library.degree or abs(rule.degree - library.degree) < 1e-12
        assert rule.weighs_losses == isinstance(library, LossWeighting)
        if options.get("smoothing"):
            rule = Smoothed(rule, options["smoothing"])
        self.task_only = options.get("task_only", rule.task_only)
        self.weight_of_loss = rule.task_only == "weighted"
        return rule

    @property
    def weights(self) -> list[Weight]:
        return [weight for groups in self.groups for group in groups for weight in group]

    # ------------------------------------------------------------------ captures

    def forget(self) -> None:
        """Drop the step under way."""
        self.captures: dict[int, dict[str, Grad]] = {}
        self.losses: dict[int, float] = {}
        self.factors: dict[int, float] = {}

    def _gradients(self, batch: Batch, factor: float) -> dict[str, Grad]:
        """What the backward of a batch gives the parameters, and of a trunk's the features."""
        weights, grads = self.weights, {}
        for position, pieces in uses(batch, weights).items():
            weight = weights[position]
            scale = float(rounded(np.float64(factor), weight.dtype))
            parts = [scale * piece.dense(weight.shape) for piece in pieces]
            parts = [rounded(part, weight.dtype) for part in parts]
            total = reduce(lambda a, b: rounded(a + b, weight.dtype), parts)
            grads[weight.name] = Grad(total, pieces[0].rows is not None)
        return grads

    def _through_trunk(self, grads: dict[str, Grad]) -> dict[str, Grad]:
        """The gradients of a trunk's parameters, from those of its features."""
        result = dict(grads)
        for weight in self.weights:
            if weight.kind == "trunk" and weight.name in grads:
                grad = grads[weight.name]
                values = rounded(grad.values * inputs_of(weight), weight.dtype)
                result[weight.name] = Grad(values, False, 2 * grad.error)
        return result

    def _accumulate(self, into: dict[str, Grad], more: dict[str, Grad]) -> None:
        """Add gradients up as autograd does, in the parameter's dtype."""
        dtypes = {weight.name: weight.dtype for weight in self.weights}
        for name, grad in more.items():
            if name not in into:
                into[name] = Grad(grad.values.copy(), grad.sparse, grad.error)
                continue
            before = into[name]
            total = rounded(before.values + grad.values, dtypes[name])
            finite = np.where(np.isfinite(total), total, 0)
            error = before.error + grad.error
            if error:  # what is added is known up to an error, so the rounding of the sum is not
                error += 2 * ROUNDING[dtypes[name]] * float(np.linalg.norm(finite))
            into[name] = Grad(total, before.sparse and grad.sparse, error)

    def _capture(self, batch: Batch, factor: float, features: bool = False) -> None:
        grads = self._gradients(batch, factor)
        self._accumulate(
            self.captures.setdefault(batch.task, {}),
            grads if features else self._through_trunk(grads),
        )

    # ------------------------------------------------------------------ calls

    def task(self, call: Task) -> None:
        batch = call.batch
        if call.fails:
            self.forget()
            raise RefusedError(ZeroDivisionError)
        self._capture(batch, 1.0)
        if call.told:
            self.losses[batch.task] = self.losses.get(batch.task, 0.0) + batch.value

    def join(self, call: Join, features: bool, draws: list[Draw]) -> None:
        """``features``: whether the model has a trunk to join at."""
        if features:
            self._refuse_features(call)
        due = self.every is not None and self.since_measured + 1 >= self.every
        weighs = self.rule.weighs_losses and call.combine and not self.captures and not due
        for batch in call.batches:
            self.losses[batch.task] = self.losses.get(batch.task, 0.0) + batch.value
            self.factors[batch.task] = self.factors.get(batch.task, 0.0) + call.factor
        if weighs:
            self._weighted(call)
            return
        for batch in call.batches:
            self._capture(batch, call.factor, features)
        if call.combine:
            if self._misses_losses():
                self.forget()
                raise RefusedError(RuntimeError)
            self._combine(draws, features)

    def _misses_losses(self) -> bool:
        return self.rule.needs_losses and bool(set(self.captures) - set(self.losses))

    def _refuse_features(self, call: Join) -> None:
        if self.captures:
            raise RefusedError(RuntimeError)
        if self.label("features") not in {self.label(weight.name) for weight in self.weights}:
            raise RefusedError(ValueError)
        trunk = next(w.name for w in self.weights if w.kind == "trunk")
        if not any(trunk in self._gradients(batch, 1.0) for batch in call.batches):
            raise RefusedError(ValueError)

    def combine(self, call: Combine, draws: list[Draw]) -> None:
        told = {k: told_loss(k) for k in call.told or ()}
        if set(told) - set(self.captures):
            raise RefusedError(ValueError)
        self.losses |= told
        if self._misses_losses():
            raise RefusedError(RuntimeError)
        if not self.captures:
            raise RefusedError(RuntimeError)
        if call.scale is not None:
            self.factors = dict.fromkeys(self.captures, call.scale)
        self._combine(draws, False)

    def discard(self) -> None:
        self.forget()

    def zero_grad(self, set_to_none: bool) -> None:
        self.forget()
        if set_to_none:
            self.grads = {}
        self.grads = {n: Grad(np.zeros_like(g.values), g.sparse) for n, g in self.grads.items()}

    def auxiliary(self, batch: Batch) -> None:
        self._accumulate(self.grads, self._through_trunk(self._gradients(batch, 1.0)))

    def clip(self, norm: float) -> bool:
        """Return whether there is something to clip, which torch does not for sparse gradients."""
        grads = self.grads.values()
        if not all(grad.finite() and not grad.sparse for grad in grads):
            return False
        total = float(np.sqrt(sum((grad.values**2).sum() for grad in grads)))
        factor = min(1.0, norm / (total + 1e-6))
        dtypes = {weight.name: weight.dtype for weight in self.weights}
        # torch takes each norm in the gradient's dtype.
        coarse = max((ROUNDING[dtypes[name]] for name in self.grads), default=0.0)
        for grad in self.grads.values():
            grad.values = grad.values * factor
            grad.error = 8 * coarse * float(np.linalg.norm(grad.values)) if factor < 1 else 0.0
        return True

    def fresh(self, statistics: bool) -> None:
        """A fresh optimizer continues from a checkpoint."""
        self.forget()
        if not statistics:
            self.statistics = Statistics(self.tasks)

    def fresh_statistics(self) -> None:
        """``conflicts.reset()``."""
        self.statistics = Statistics(self.tasks)

    def copied(self) -> None:
        """Parameters are copied without their ``.grad``, the optimizer without captures."""
        self.forget()
        self.grads = {}

    def add_group(self, weight: Weight, base: int) -> None:
        self.groups[base].append([weight])

    # ------------------------------------------------------------------ combination

    def _weighted(self, call: Join) -> None:
        """One backward pass of the weighted losses."""
        weights, after = self.rule.weigh(self._loss_vector())
        update: dict[str, Grad] = {}
        sizes: dict[str, float] = {}
        for batch in call.batches:
            factor = call.factor * float(weights[batch.task])
            grads = self._through_trunk(self._gradients(batch, factor))
            self._accumulate(update, grads)
            for name, grad in grads.items():
                finite = np.where(np.isfinite(grad.values), grad.values, 0)
                sizes[name] = sizes.get(name, 0.0) + float(np.linalg.norm(finite))
        dtypes = {weight.name: weight.dtype for weight in self.weights}
        for name, grad in update.items():
            grad.error = (10 * ROUNDING[dtypes[name]] + 1e-9) * sizes[name]
        finite = all(grad.finite() for grad in update.values())
        self.statistics.window += 1
        if finite:
            self.rule.commit(after)
            self.since_measured += 1
            self.statistics.unmeasured += 1
            self.compared += 1
        else:
            self.statistics.nonfinite += 1
        self._accumulate(self.grads, update)
        self.forget()

    def _combine(self, draws: list[Draw], features: bool) -> None:
        captures, tasks = self.captures, range(self.tasks)
        weights = [w for w in self.weights if any(w.name in grads for grads in captures.values())]
        shared = [w for w in weights if sum(w.name in grads for grads in captures.values()) > 1]
        alone = [w for w in weights if w not in shared]
        finite = all(grad.finite() for grads in captures.values() for grad in grads.values())
        members: dict[str, list[Weight]] = {}
        for weight in shared:
            members.setdefault(self._label(weight, features), []).append(weight)
        self.statistics.window += 1
        decisions: dict[str, Decision] = {}
        segments = {label: self._segment(part) for label, part in members.items()}
        if not finite:
            self.statistics.nonfinite += 1
            self.loss_weights = np.ones(self.tasks)
            assert not draws, "a random number was drawn in a step that is not finite"
        else:
            decisions = self._decide(segments, draws)
        divisor = len(captures) if self.reduction == "mean" else 1
        update: dict[str, Grad] = {}
        for label, part in members.items():
            decision = decisions.get(label, None)
            if decision is None:
                decision = Decision(segments[label].rows.sum(0), np.ones(self.tasks))
            update |= self._cut(part, segments[label], decision, divisor)
        for weight in alone:
            task = next(k for k in tasks if weight.name in captures.get(k, {}))
            grad = captures[task][weight.name]
            factor = self._alone(decisions, segments, self._label(weight, features), task)
            values, error = grad.values, 0.0
            if factor is None:
                error = np.inf
            elif self.task_only == "weighted":
                values = factor * values
                known = 1e-5 if self.rule.needs_losses else 1e-3  # as well as the factor is
                error = (4 * ROUNDING[weight.dtype] + known) * float(np.linalg.norm(values))
            update[weight.name] = Grad(values, grad.sparse, error)
        self._accumulate(self.grads, self._through_trunk(update) if features else update)
        self.forget()

    def _label(self, weight: Weight, features: bool) -> str:
        return self.label("features" if features and weight.kind == "trunk" else weight.name)

    def _segment(self, part: list[Weight]) -> Segment:
        rows, present = [], []
        for k in range(self.tasks):
            grads = self.captures.get(k, {})
            present.append(any(w.name in grads for w in part))
            pieces = [
                grads[w.name].values.ravel() if w.name in grads else np.zeros(w.shape).ravel()
                for w in part
            ]
            rows.append(np.concatenate(pieces))
        return Segment(np.stack(rows), np.array(present))

    def _cut(
        self, part: list[Weight], segment: Segment, decision: Decision, divisor: int
    ) -> dict[str, Grad]:
        """A segment's update, cut into its parameters."""
        self.compared += decision.update is not None
        self.open += decision.update is None
        rows = np.where(np.isfinite(segment.rows), segment.rows, 0)
        size = float(np.linalg.norm(rows, axis=1).sum())
        if decision.weights is not None:
            size = float((np.abs(decision.weights) * np.linalg.norm(rows, axis=1)).sum())
        update, at, grads = decision.update, 0, {}
        if update is None:
            update, error = np.zeros(segment.rows.shape[1]), np.inf
        else:
            # The weights come in float64, are sums in float32 or better, and round once.
            error = decision.error + 4 * (self.tasks + 1) * self._coarsest(part, 2.0**-24) * size
            error += (
                4
                * self._coarsest(part)
                * float(np.linalg.norm(np.nan_to_num(update, posinf=0, neginf=0)))
            )
        for weight in part:
            count = int(np.prod(weight.shape))
            values = update[at : at + count].reshape(weight.shape) / divisor
            stays = all(
                self.captures[k][weight.name].sparse
                for k in self.captures
                if weight.name in self.captures[k]
            )
            grads[weight.name] = Grad(values, stays, float(error) / divisor)
            at += count
        return grads

    def _coarsest(self, part: list[Weight], most: float = 1.0) -> float:
        return max(min(most, ROUNDING[weight.dtype]) for weight in part)

    def _alone(
        self, decisions: dict[str, Decision], segments: dict[str, Segment], label: str, task: int
    ) -> float | None:
        """The weight of a gradient of an only task; None where it is not determined."""
        if self.task_only == "plain":
            return 1.0
        if self.weight_of_loss:
            return float(self.loss_weights[task])
        if label not in decisions or not segments[label].present[task]:
            return 1.0
        weights = decisions[label].weights
        return None if weights is None else float(weights[task])

    def _loss_vector(self) -> Array:
        return np.array([self.losses.get(k, np.nan) for k in range(self.tasks)])

    def _decide(self, segments: dict[str, Segment], draws: list[Draw]) -> dict[str, Decision]:
        coarse = max((PRECISION[w.dtype] for w in self.weights), default=1e-14)
        factors = [self.factors.get(k, 1.0) for k in self.captures]
        facts = Facts(self._loss_vector(), coarse, max(factors))
        if self.rule.draws:
            assert len(draws) == 1, f"{len(draws)} draws in a step"
            assert draws[0].before == self.rng, "the generator is not where the last step left it"
            self.rng = draws[0].after
            setattr(facts, "order" if self.rule.draws == "order" else "draws", draws[0].values)
        else:
            assert not draws, "a random number was drawn that nobody needs"
        scale = facts.scale if self.rule.degree != 1 else 1.0
        unscaled = {n: Segment(s.rows / scale, s.present) for n, s in segments.items()}
        decisions, after = self.rule.decide(unscaled, facts)
        if self.weight_of_loss:
            self.loss_weights = self._weights_of_losses(segments, decisions, facts)
        for decision in decisions.values():
            if decision.update is not None:
                decision.update = decision.update * scale
                decision.error *= scale
        if after is not None:
            self.rule.commit(after)
        self.since_measured = 0
        self._count(segments, decisions, coarse)
        return decisions

    def _weights_of_losses(
        self, segments: dict[str, Segment], decisions: dict[str, Decision], facts: Facts
    ) -> Array:
        """Weights that hold in every segment, also where nothing is shared."""
        for decision in decisions.values():
            if decision.weights is not None:
                return decision.weights
        rows = np.zeros((self.tasks, 1))
        inner = self.rule.rule if isinstance(self.rule, Smoothed) else self.rule
        nothing = {"": Segment(rows, np.zeros(self.tasks, dtype=bool))}
        weights = inner.decide(nothing, facts)[0][""].weights
        assert weights is not None
        return weights

    # ------------------------------------------------------------------ statistics

    def _count(
        self, segments: dict[str, Segment], decisions: dict[str, Decision], precision: float
    ) -> None:
        statistics = self.statistics
        statistics.gradients += len(self.captures)
        square = np.zeros(self.tasks)
        plain_square, change_square = 0.0, 0.0
        known = True
        for label, segment in segments.items():
            decision = decisions[label]
            norms = np.linalg.norm(segment.rows, axis=1)
            square += norms**2
            plain = segment.rows.sum(0)
            plain_square += float(plain @ plain)
            known &= decision.update is not None
            if decision.update is not None:
                change_square += float(((decision.update - plain) ** 2).sum())
            for i in range(self.tasks):
                for j in range(self.tasks):
                    pairs = [statistics.pair(i, j), statistics.pair(i, j, label)]
                    for pair in pairs:
                        self._count_pair(pair, segment, decision, norms, i, j, precision)
        statistics.norms.append(list(np.sqrt(square)))
        sizes = sum(float(np.linalg.norm(s.rows, axis=1).sum()) for s in segments.values())
        if not known or 0 < plain_square < (1e-2 * sizes) ** 2:
            statistics.changes.append(None)
        elif plain_square > 0:
            statistics.changes.append(float(np.sqrt(change_square / plain_square)))

    def _count_pair(
        self,
        pair: Pair,
        segment: Segment,
        decision: Decision,
        norms: Array,
        i: int,
        j: int,
        precision: float,
    ) -> None:
        if i == j:
            return
        if decision.altered is None and decision.update is not None:
            pair.altered = None
        if norms[i] > 0 and norms[j] > 0:
            cosine = float(segment.rows[i] @ segment.rows[j] / norms[i] / norms[j])
            pair.possible += 1
            pair.cosines.append(cosine)
            pair.conflicts.add(cosine < 0, abs(cosine) > 30 * precision)
        if pair.altered is None:
            return
        if decision.update is None and decision.altered is None:
            pair.altered.high += 1
        elif decision.altered is not None:
            assert decision.certain is not None
            pair.altered.add(bool(decision.altered[i, j]), bool(decision.certain[i, j]))


def told_loss(task: int) -> float:
    """What ``combine(losses=)`` is told of a task."""
    return 1.5 + task
