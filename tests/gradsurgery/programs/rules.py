"""What each method of ``tests.methods`` decides, on float64 vectors, as its page of the docs says.

No line is shared with the library. Surgery is taken from ``tests.oracles`` and ``tests.solutions``,
which are written from the papers; the weightings of losses are here, step by step and with absent
tasks, as their docstrings define them.

A rule sees a step as :class:`Facts` and its segments as :class:`Segment`; it answers with a
:class:`Decision` for each, and changes its own state only in :meth:`Rule.commit`, which a step with
non-finite gradients does not reach. Where gradients are so dependent that a paper's equation does
not determine the update to a few digits, ``update`` is None: nothing is compared there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np

from tests import oracles, solutions

Array = np.ndarray


@dataclass
class Segment:
    """The gradients of the parameters that two or more tasks share: ``rows[K, N]``, present[K]."""

    rows: Array
    present: Array

    @property
    def there(self) -> Array:
        """The tasks whose gradient has a direction."""
        return np.abs(self.rows).max(axis=1, initial=0.0) > 0


@dataclass
class Facts:
    """What else is known of a step: ``losses[K]``, NaN for absent tasks."""

    losses: Array
    precision: float  # of the library's Gram matrix, relative
    scale: float = 1.0
    order: Array | None = None  # [K, K]
    draws: Array | None = None  # [K]


@dataclass
class Decision:
    """What becomes of a segment.

    Attributes:
        update: ``[N]``; None where it is not determined.
        weights: ``[K]``, such that the update is their combination; None where not determined.
        error: how far the library's update may be from it.
        altered: ``[K, K]`` bool, or None where that has no meaning.
        certain: ``[K, K]`` bool, the decisions that are beyond rounding.
    """

    update: Array | None
    weights: Array | None
    error: float = 0.0
    altered: Array | None = None
    certain: Array | None = None


Decisions = dict[str, Decision]


def by_weights(segment: Segment, weights: Array, precision: float) -> Decision:
    """The decision for known weights."""
    sizes = np.abs(weights) * np.linalg.norm(segment.rows, axis=1)
    return Decision(weights @ segment.rows, weights, 10 * precision * float(sizes.sum()))


def conditioning(rows: Array) -> float:
    """The smallest singular value of the unit gradients; zero where they must be dependent."""
    if len(rows) == 0 or rows.shape[1] < len(rows):
        return 0.0
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float(np.linalg.svd(units, compute_uv=False)[-1])


def weights_of(segment: Segment, update: Array) -> Array | None:
    """The weights that give ``update``, where gradients are independent enough to tell."""
    there = segment.there
    if (segment.present & ~there).any() or conditioning(segment.rows[there]) < 0.1:
        return None
    weights = np.zeros(len(there))
    weights[there] = np.linalg.lstsq(segment.rows[there].T, update, rcond=None)[0]
    return weights


class Rule:
    """A method of the gradients."""

    degree = 1.0
    weighs_losses = False  # decides by the losses alone
    task_only = "plain"
    needs_losses = False
    draws = ""  # "order" or "draws"
    state: dict[str, Array]

    def __init__(self) -> None:
        self.state = {}

    def decide(self, segments: dict[str, Segment], facts: Facts) -> tuple[Decisions, object]:
        """Return the decisions, and what to :meth:`commit`."""
        return {name: self.decide_segment(name, s, facts) for name, s in segments.items()}, None

    def decide_segment(self, name: str, segment: Segment, facts: Facts) -> Decision:
        raise NotImplementedError

    def commit(self, after: object) -> None:
        """Keep the state that :meth:`decide` returned."""

    def adopt(self, name: str, target: Array) -> None:
        """Compare with, and go on from, a segment's targets in the library's checkpoint."""


class Plain(Rule):
    def decide_segment(self, name: str, segment: Segment, facts: Facts) -> Decision:
        tasks = len(segment.rows)
        decision = by_weights(segment, np.ones(tasks), facts.precision)
        decision.altered = np.zeros((tasks, tasks), dtype=bool)
        decision.certain = ~decision.altered
        return decision


class Projection(Rule):
    """PCGrad."""

    draws = "order"

    def decide_segment(self, name: str, segment: Segment, facts: Facts) -> Decision:
        assert facts.order is not None
        answer = oracles.pcgrad(segment.rows, facts.order, facts.precision)
        return _answered(segment, answer, facts)


class Vaccine(Rule):
    """GradVac, with targets by segment."""

    draws = "order"

    def __init__(self, beta: float, target: float, update: str = "always") -> None:
        super().__init__()
        self.beta, self.start, self.update = beta, target, update
        self.unsure: dict[str, Array] = {}

    def target(self, name: str, tasks: int) -> Array:
        return self.state.get(name, np.full((tasks, tasks), self.start))

    def decide(self, segments: dict[str, Segment], facts: Facts) -> tuple[Decisions, object]:
        decisions, after = {}, {}
        assert facts.order is not None
        for name, segment in segments.items():
            target = self.target(name, len(segment.rows))
            answer = oracles.gradvac(
                segment.rows, facts.order, target, self.beta, self.update, facts.precision
            )
            decisions[name] = _answered(segment, answer, facts)
            after[name] = answer.target, answer.target_doubt
        return decisions, after

    def commit(self, after: object) -> None:
        assert isinstance(after, dict)
        self.state |= {name: target for name, (target, _) in after.items()}
        self.unsure = {name: doubt for name, (_, doubt) in after.items()}

    def adopt(self, name: str, target: Array) -> None:
        due = self.target(name, len(target))
        wrong = np.abs(target - due) > 1e-5 + self.unsure.get(name, 0.0)
        assert not wrong.any(), f"the targets of {name!r} are {target.tolist()}, not {due.tolist()}"
        self.state[name] = target


def _answered(segment: Segment, answer: oracles.Answer, facts: Facts) -> Decision:
    size = float(np.linalg.norm(segment.rows, axis=1).sum())
    size += float(np.linalg.norm(answer.parts, axis=1).sum())
    return Decision(
        answer.update,
        weights_of(segment, answer.update),
        30 * facts.precision * size + answer.doubt,
        answer.altered,
        answer.certain,
    )


class Solved(Rule):
    """A method of the Gram matrix that ``tests.solutions`` solves from the gradients.

    Args:
        name: of the oracle.
        zero: what a zero gradient does: "stops", the update is zero; "counts", it is one of those
            that the mean is taken over; "nothing"; or "unknown".
        degree: the method's.
    """

    def __init__(self, name: str, zero: str = "nothing", degree: float = 1.0) -> None:
        super().__init__()
        self.oracle, self.zero, self.degree = solutions.ORACLES[name], zero, degree
        self.loose = 1e-3 if name.startswith("cagrad") else 1e-6

    def decide_segment(self, name: str, segment: Segment, facts: Facts) -> Decision:
        there = segment.there
        rows, zeros = segment.rows[there], (segment.present & ~there).sum()
        nothing = Decision(np.zeros(segment.rows.shape[1]), None, 0.0)
        if not there.any() or (zeros and self.zero == "stops"):
            return nothing
        norms = np.linalg.norm(rows, axis=1)
        sharp = conditioning(rows)
        if sharp < 0.2 or norms.max() > 100 * norms.min() or (zeros and self.zero == "unknown"):
            return Decision(None, None)
        unit = norms.max() if self.degree == 1 else 1.0  # solvers know absolute sizes
        update = unit * self.oracle(rows / unit)
        if self.zero == "counts":
            update = update * len(rows) / (len(rows) + zeros)
        weights = weights_of(segment, update)
        lengths = np.linalg.lstsq(rows.T, update, rcond=None)[0] * norms
        if np.abs(lengths).sum() > 100 * max(norms.max(), float(np.linalg.norm(update))):
            return Decision(None, None)  # IMTL-G's weights sum to nearly nothing
        size = float(np.linalg.norm(update) + np.abs(lengths).sum())
        size += norms.max() if self.degree == 1 else 0.0
        return Decision(update, weights, (self.loose + 100 * facts.precision) * size / sharp**2)


class Unit(Rule):
    """The sum of the unit gradients."""

    degree = 0.0

    def decide_segment(self, name: str, segment: Segment, facts: Facts) -> Decision:
        norms = np.linalg.norm(segment.rows, axis=1)
        weights = np.where(norms > 0, 1 / np.where(norms > 0, norms, 1), 0)
        return by_weights(segment, weights, facts.precision)


class First(Rule):
    """Primary(0), alone or with PCGrad for the auxiliary tasks."""

    def __init__(self, auxiliary: Rule | None = None) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        self.draws = auxiliary.draws if auxiliary else ""

    def decide_segment(self, name: str, segment: Segment, facts: Facts) -> Decision:
        tasks, primary = len(segment.rows), segment.rows[0]
        square = float(primary @ primary)
        rest = segment.rows.copy()
        rest[0] = 0
        altered = np.zeros((tasks, tasks), dtype=bool)
        certain = np.ones((tasks, tasks), dtype=bool)
        sizes = np.linalg.norm(rest, axis=1)
        for k in range(1, tasks):
            dot = float(rest[k] @ primary)
            if square > 0 and sizes[k] > 0:
                certain[k, 0] = abs(dot) > 30 * facts.precision * sizes[k] * math.sqrt(square)
                if dot < 0:
                    rest[k] -= dot / square * primary
                    altered[k, 0] = True
        # What rounding has left of a gradient that was opposed to the primary one is nothing.
        left = np.linalg.norm(rest, axis=1)
        rest[left < 1e-7 * sizes] = 0
        doubtful = ((left < 1e-3 * sizes) & (left > 1e-9 * sizes)).any()
        combined, error = rest.sum(0), 0.0
        if self.auxiliary is not None:
            present = segment.present.copy()
            present[0] = False
            inner = self.auxiliary.decide_segment(name, Segment(rest, present), facts)
            assert inner.update is not None
            assert inner.altered is not None
            assert inner.certain is not None
            combined, error = inner.update, inner.error
            altered |= inner.altered
            certain &= inner.certain
        if square > 0:
            combined = combined - min(0.0, float(combined @ primary) / square) * primary
        update = primary + combined
        error += 100 * facts.precision * (float(sizes.sum()) + math.sqrt(square))
        if doubtful:
            return Decision(None, None, 0.0, altered, np.zeros_like(certain))
        return Decision(update, weights_of(segment, update), error, altered, certain)


class Random(Rule):
    draws = "draws"

    def decide_segment(self, name: str, segment: Segment, facts: Facts) -> Decision:
        assert facts.draws is not None
        powers = np.where(segment.present, np.exp(facts.draws), 0)
        return by_weights(segment, powers / max(powers.sum(), 1e-300), facts.precision)


class LossRule(Rule):
    """Weights of losses, the same in all segments."""

    weighs_losses = True
    needs_losses = True
    task_only = "weighted"

    def weigh(self, losses: Array) -> tuple[Array, dict[str, Array]]:
        """Return the weights and the next state."""
        raise NotImplementedError

    def decide(self, segments: dict[str, Segment], facts: Facts) -> tuple[Decisions, object]:
        weights, after = self.weigh(facts.losses)
        return {n: by_weights(s, weights, facts.precision) for n, s in segments.items()}, after

    def commit(self, after: object) -> None:
        assert isinstance(after, dict)
        self.state = after


@dataclass
class Adam:
    """Adam without an epsilon, an entry of its own for each task (Kingma & Ba 2015)."""

    lr: float
    mean: dict[int, float] = field(default_factory=dict)
    square: dict[int, float] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)

    def moved(self, values: Array, slopes: Array, moves: Array) -> tuple[Array, Adam]:
        values, after = values.copy(), deepcopy(self)
        for k in np.flatnonzero(moves):
            t = after.steps[k] = self.steps.get(k, 0) + 1
            after.mean[k] = 0.9 * self.mean.get(k, 0.0) + 0.1 * slopes[k]
            after.square[k] = 0.999 * self.square.get(k, 0.0) + 0.001 * slopes[k] ** 2
            length = math.sqrt(after.square[k] / (1 - 0.999**t))
            if length > 0:
                values[k] -= self.lr * after.mean[k] / (1 - 0.9**t) / length
        return values, after


class Uncertainty(LossRule):
    def weigh(self, losses: Array) -> tuple[Array, dict]:
        log_variance = self.state.get("log_variance", np.zeros(len(losses)))
        adam = self.state.get("adam", Adam(0.025))
        known = np.isfinite(losses)
        weights = np.exp(-log_variance)
        slopes = 1 - weights * np.where(known, losses, 0)
        log_variance, adam = adam.moved(log_variance, slopes, known)
        return np.where(known, weights, 1), {"log_variance": log_variance, "adam": adam}


class Average(LossRule):
    """Dynamic weight average."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period

    def weigh(self, losses: Array) -> tuple[Array, dict]:
        tasks = len(losses)
        means = self.state.get("means", [])  # of the periods that ended
        current = [*self.state.get("current", []), losses]
        ratio = np.ones(tasks)
        if len(means) >= 2:
            with np.errstate(all="ignore"):
                ratio = np.where((means[-1] > 0) & (means[-2] > 0), means[-1] / means[-2], 1.0)
        powers = np.exp(ratio / 2.0)
        weights = tasks * powers / powers.sum()
        if len(current) == self.period:
            before = means[-1] if means else np.zeros(tasks)
            stack = np.stack(current)
            counts = np.isfinite(stack).sum(0)
            sums = np.where(np.isfinite(stack), stack, 0).sum(0)
            means = [*means, np.where(counts > 0, sums / np.maximum(counts, 1), before)]
            current = []
        weights = np.where(np.isfinite(losses), weights, 1)
        return weights, {"means": means, "current": current}


class Geometric(LossRule):
    def weigh(self, losses: Array) -> tuple[Array, dict]:
        counts = losses > 0
        number = max(int(counts.sum()), 1)
        product = math.prod(losses[counts]) ** (1 / number)
        weights = np.where(counts, product / number / np.where(counts, losses, 1), 1.0)
        return np.where(losses == 0, 0.0, weights), {}


class Tchebycheff(LossRule):
    def __init__(self, mu: float) -> None:
        super().__init__()
        self.mu = mu

    def weigh(self, losses: Array) -> tuple[Array, dict]:
        known, share = np.isfinite(losses), 1 / len(losses)
        powers = np.where(known, np.exp(share * np.where(known, losses, 0) / self.mu), 0)
        return np.where(known, share * powers / powers.sum(), 1.0), {}


class Famo(LossRule):
    def weigh(self, losses: Array) -> tuple[Array, dict]:
        tasks = len(losses)
        logits = self.state.get("logits", np.zeros(tasks))
        last = self.state.get("last", np.zeros(tasks))
        adam = self.state.get("adam", Adam(0.025))
        present = losses > 0
        known = present & (last > 0)
        if known.any():
            z = np.where(known, np.exp(logits), 0)
            z /= z.sum()
            fall = np.zeros(tasks)
            fall[known] = np.log(last[known]) - np.log(losses[known])
            slopes = z * (fall - (z * fall).sum()) + 0.01 * logits
            logits, adam = adam.moved(logits, slopes, known)
        z = np.where(present, np.exp(logits) / np.where(present, losses, 1), 0)
        weights = np.where(present, z / max(z.sum(), 1e-300), 0)
        weights = np.where(np.isnan(losses), 1.0, weights)
        last = np.where(present, losses, last)
        return weights, {"logits": logits, "last": last, "adam": adam}


class History(LossRule):
    """The throwaway dynamic weight average: of single losses, the last ones known."""

    weighs_losses = False
    task_only = "plain"

    def weigh(self, losses: Array) -> tuple[Array, dict]:
        tasks = len(losses)
        before = self.state.get("before", np.zeros(tasks))
        last = self.state.get("last", np.zeros(tasks))
        with np.errstate(all="ignore"):
            ratio = np.where((last > 0) & (before > 0), last / before, 1.0)
        powers = np.exp(ratio / 2.0)
        after = {"before": last, "last": np.where(np.isnan(losses), last, losses)}
        return tasks * powers / powers.sum(), after


class Norms(LossRule):
    """GradNorm: weights by the losses and the gradients' norms."""

    weighs_losses = False

    def decide(self, segments: dict[str, Segment], facts: Facts) -> tuple[Decisions, object]:
        losses, tasks = facts.losses, len(facts.losses)
        w = self.state.get("w", np.ones(tasks))
        first = self.state.get("first", np.zeros(tasks))
        adam = self.state.get("adam", Adam(0.025))
        first = np.where((first == 0) & (losses > 0), losses, first)
        square, present = np.zeros(tasks), np.zeros(tasks, dtype=bool)
        for segment in segments.values():
            square += (segment.rows**2).sum(1)
            present |= segment.present
        norms = np.sqrt(square) / facts.scale
        moves = present & (losses >= 0) & (first > 0)
        unsure = False
        after, moments = w, adam
        if moves.any():
            lengths = (w * norms)[moves]
            rates = (losses / np.where(first > 0, first, 1))[moves]
            rates = rates / rates.mean() if rates.mean() > 0 else np.ones_like(rates)
            target = lengths.mean() * rates**1.5
            gap = lengths - target
            near = np.abs(gap) < 100 * facts.precision * (lengths + target)
            unsure = bool((near & (gap != 0)).any()) or bool((near & (len(gap) > 1)).any())
            slopes = np.zeros(tasks)
            slopes[moves] = np.sign(gap) * norms[moves]
            moved, moments = adam.moved(w, slopes, moves)
            moved = np.where(moves, np.maximum(moved, 0), 0)
            kept = w[moves].sum()
            if moved.sum() > 0:
                after = np.where(moves, moved * (kept / max(moved.sum(), 1e-300)), w)
        decided = np.where(np.isnan(losses), 1.0, w)
        decisions = {n: by_weights(s, decided, facts.precision) for n, s in segments.items()}
        return decisions, {"w": after, "first": first, "adam": moments, "unsure": unsure}


def _smoothed_weights(segment: Segment, decision: Decision, virtual: Array) -> Decision:
    """The decision on virtual gradients, applied to those of the step."""
    if decision.update is None:
        return decision
    if decision.weights is None:
        return Decision(None, None, 0.0, decision.altered, decision.certain)
    weights = decision.weights
    units = np.linalg.norm(virtual, axis=1)
    relative = decision.error / max(float(units[units > 0].min(initial=np.inf)), 1e-300)
    sizes = np.linalg.norm(segment.rows, axis=1)
    # A weight is known as well as the update over the length of its gradient.
    error = 10 * relative * float(sizes.sum()) / max(conditioning(virtual[units > 0]), 1e-3)
    return Decision(weights @ segment.rows, weights, error, decision.altered, decision.certain)


class Smoothed(Rule):
    """Any rule on the exponential mean of the Gram matrix, by pairs that were there together."""

    def __init__(self, rule: Rule, beta: float) -> None:
        super().__init__()
        self.rule, self.beta = rule, beta
        self.needs_losses, self.draws = rule.needs_losses, rule.draws
        self.task_only = rule.task_only

    def decide(self, segments: dict[str, Segment], facts: Facts) -> tuple[Decisions, object]:
        after: dict[str, tuple[Array, Array]] = {}
        averaged: dict[str, Segment] = {}
        lost = set()
        for name, segment in segments.items():
            tasks = len(segment.rows)
            zeros = np.zeros((tasks, tasks))
            mean, count = self.state.get(name, (zeros, zeros))
            pairs = segment.present[:, None] & segment.present
            count = count + pairs
            rows = segment.rows / facts.scale
            pace = (1 - self.beta) / (1 - self.beta ** np.maximum(count, 1))
            mean = np.where(pairs, mean + pace * (rows @ rows.T - mean), mean)
            after[name] = mean, count
            matrix = np.where(pairs, mean, 0)
            norms = np.sqrt(np.diag(matrix))
            there = norms > 0
            cosines = matrix[np.ix_(there, there)] / np.outer(norms[there], norms[there])
            virtual = np.zeros((tasks, tasks))
            if there.any():
                if np.linalg.eigvalsh(cosines)[0] < 1e-3:
                    lost.add(name)
                    continue
                virtual[np.ix_(there, there)] = norms[there, None] * np.linalg.cholesky(cosines)
            averaged[name] = Segment(virtual, segment.present)
        inner_facts = Facts(facts.losses, facts.precision, 1.0, facts.order, facts.draws)
        decisions, inner = self.rule.decide(averaged, inner_facts)
        result: Decisions = {}
        for name, segment in segments.items():
            if name in lost:
                result[name] = Decision(None, None)
                continue
            decision = _smoothed_weights(segment, decisions[name], averaged[name].rows)
            if decision.altered is not None:
                met = np.outer(segment.there, segment.there)
                decision.altered = decision.altered & met
            result[name] = decision
        return result, (after, inner, lost)

    def commit(self, after: object) -> None:
        assert isinstance(after, tuple)
        state, inner, lost = after
        self.state |= state
        if inner is not None:
            self.rule.commit(inner)
        if isinstance(self.rule, Vaccine):
            for name in lost:
                self.rule.unsure[name] = np.full((), 2.0)

    def adopt(self, name: str, target: Array) -> None:
        self.rule.adopt(name, target)


RULES: dict[str, Callable[[], Rule]] = {
    "sum": Plain,
    "pcgrad": Projection,
    "gradvac": lambda: Vaccine(0.3, 0.0),
    "gradvac_from_0.9": lambda: Vaccine(0.3, 0.9),
    "gradvac_from_1": lambda: Vaccine(0.3, 1.0),
    "gradvac_on_alter": lambda: Vaccine(0.3, 0.3, "on_alter"),
    "uncertainty": Uncertainty,
    "dwa": lambda: Average(2),
    "geometric": Geometric,
    "tchebycheff": lambda: Tchebycheff(0.3),
    "famo": Famo,
    "gradnorm": Norms,
    "mgda": lambda: Solved("mgda", "stops"),
    "cagrad": lambda: Solved("cagrad", "unknown"),
    "cagrad_0.9": lambda: Solved("cagrad_0.9", "unknown"),
    "imtl_g": lambda: Solved("imtl_g", "stops"),
    "nash_mtl": lambda: Solved("nash_mtl", degree=0.0),
    "fairgrad": lambda: Solved("fairgrad", degree=-1 / 3),
    "fairgrad_0.5": lambda: Solved("fairgrad_0.5", degree=1 / 3),
    "fairgrad_5": lambda: Solved("fairgrad_5", degree=-2 / 3),
    "aligned_mtl": lambda: Solved("aligned_mtl"),
    "aligned_mtl_median": lambda: Solved("aligned_mtl_median"),
    "aligned_mtl_rmse": lambda: Solved("aligned_mtl_rmse"),
    "upgrad": lambda: Solved("upgrad", "counts"),
    "dual_proj": lambda: Solved("dual_proj", "counts"),
    "config": lambda: Solved("config"),
    "primary": First,
    "primary_pcgrad": lambda: First(Projection()),
    "random_weights": Random,
    "throwaway mgda": lambda: Solved("mgda", "stops"),
    "throwaway dwa": History,
    "throwaway unit": Unit,
}
