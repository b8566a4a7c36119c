"""Conflict statistics: counts and cosines of conflicts, and the change that surgery made.

Everything is read off the Gram matrix and the verdict; nothing here changes a gradient. Steps are
put aside as the tensors they are, added up ``WAITING`` at a time on the device that holds them, and
turned into Python numbers only when somebody asks, once a window.

The words, as they are used throughout:

* a *conflict* is a pair of original gradients with negative cosine;
* pair (i, j) is *altered* when gradient i received a multiple of gradient j, gradient i when any j
  did that, in any segment; with a method for which that has no meaning it is None;
* pairs are counted once per step and segment in which both gradients exist and are not zero;
* *change* is |u - s| / |s|: u the update, s the plain sum, over all shared parameters;
* a step is *unmeasured* when one backward pass of weighted losses did: its weights are known, and
  nothing of its gradients. It enters ``unmeasured`` and ``weights``, and no count of conflicts.

Counts alone mislead. Gradients that are nearly orthogonal conflict in half of the steps by chance,
and it means nothing: look at the cosines and at the change beside the counts, and at the evidence
(:mod:`gradsurgery.evidence`), which takes successive steps in batches of ``BATCH``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradsurgery._warnings import warn
from gradsurgery.evidence import BATCH, Evidence, sentence
from gradsurgery.methods import Verdict
from gradsurgery.summary import PairCounts, PairSummary, Summary, pair_names
from gradsurgery.transfer import to_device

#: Steps, and numbers of their Gram matrices, that wait at most before they are added up.
WAITING = 32
ELEMENTS = 1 << 20

#: Steps without a finite gradient, one after the other, that are told of. A loss scale that starts
#: too high is halved into range in fewer.
LOST = 20

#: The sums of shape [S, K, K], in the order of the fields of :class:`PairCounts`: what they start
#: from, and how they add up over segments.
_PAIRWISE: dict[str, tuple[float, Callable[[Tensor, int], Tensor]]] = {
    "possible": (0.0, torch.sum),
    "conflicts": (0.0, torch.sum),
    "altered": (0.0, torch.sum),
    "cosine": (0.0, torch.sum),
    "lowest": (math.inf, torch.amin),
    "highest": (-math.inf, torch.amax),
    "target": (math.nan, torch.mean),
}
#: The sums of shape [K], and of shape [1], which start from zero.
_TASKWISE = ("active", "active_altered", "present", "norm", "weighted", "weight")
_SCALAR = ("steps", "unmeasured", "nonfinite", "changed", "change", "most")
#: The sums for evidence, ``[1 + S, N, K, K]``, the whole model first: of the open batch (its
#: cosines, their number), and over all batches closed (the six of :class:`Evidence`).
_BATCHED = {"open": 2, "closed": 6}
#: The sums that older versions did not have; that may be NaN; that may be negative; that may be
#: infinite; and those that all steps, or a pair's possible ones, are the most for.
_LATER = ("unmeasured", "open", "closed")
_UNDEFINED = {"altered", "active_altered", "target"}
_SIGNED = {"cosine", "lowest", "highest", "target", "weight", "open", "closed"}
_OPEN = {"lowest", "highest"}
_UP_TO_STEPS = {"possible", "active", "present", "weighted", "changed", "nonfinite", "unmeasured"}
_UP_TO_POSSIBLE = {"conflicts", "altered", "cosine"}


class ConflictStatistics:
    """What happened between the tasks' gradients since the last :meth:`reset`.

    Args:
        tasks: the task names, in order.
        method: how the method calls itself.

    Example:
        >>> from gradsurgery import PCGrad
        >>> stats = ConflictStatistics(("a", "b"), "PCGrad(seed=0)")
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]]], dtype=torch.float64)
        >>> verdict = PCGrad()(gram, torch.tensor([[0, 1], [0, 1]]), {})
        >>> stats.update(gram, verdict, ["model"], torch.tensor([True, True]))
        >>> stats.summary()["pairs"][0]["cosine"]["mean"], stats.summary()["change"]["mean"]
        (-0.5, 0.5)
    """

    def __init__(self, tasks: Sequence[str], method: str) -> None:
        self.tasks = tuple(map(str.__str__, tasks))
        self.method = method
        self.segments: list[str] = []
        self._lost = 0  # steps skipped since the last that was not, also over windows
        self.reset()

    def reset(self) -> None:
        """Begin a new window: everything back to zero."""
        self._skipped = 0
        self._begun = 0  # steps of the open batch
        self._waiting: list[_Step] = []
        self._sums: dict[str, Tensor] = {}  # made by the first step, on its device

    def skip(self, gram: Tensor | None = None) -> None:
        """Count a step with a non-finite gradient, which enters no other figure.

        Args:
            gram: ``[S, K, K]`` of the step, which shows the tasks to name in a warning.
        """
        self._skipped += 1
        self._lost += 1
        if self._lost == LOST:
            norms = [] if gram is None else gram.diagonal(dim1=-2, dim2=-1).sum(0).tolist()
            names = [
                t for t, norm in zip(self.tasks, norms, strict=False) if not math.isfinite(norm)
            ]
            _warn_of_lost(LOST, names)

    def update(
        self,
        gram: Tensor,
        verdict: Verdict,
        segments: Sequence[str],
        active: Tensor,
        finite: Tensor | None = None,
        measured: bool = True,
        factor: float = 1.0,
    ) -> None:
        """Add one step.

        Args:
            gram: ``[S, K, K]`` float64.
            verdict: what the method decided on it. Neither may be written to afterwards.
            segments: the S segments' names.
            active: ``[K]`` bool, the tasks that ran in this step.
            finite: scalar bool on the device of ``gram``; where it is False the step is counted as
                :meth:`skip` does. None for True.
            measured: False where the gradients were not, and ``gram`` is zeros.
            factor: that the gradients carry in ``gram``.
        """
        self._lost = 0
        sums = self._sums
        if not sums or list(segments) != self.segments or sums["steps"].device != gram.device:
            self._add_up()
            self._make_room(segments, gram.device)
        self._waiting.append(_Step(gram, verdict, active, finite, measured, factor))
        if len(self._waiting) >= min(WAITING, ELEMENTS // gram.numel()):
            self._add_up()

    def summary(self) -> Summary:
        """Return the window in plain Python values, as :class:`~gradsurgery.ConflictLog` writes it.

        ``pairs`` lists ordered pairs (i, j), since alterations and targets have a direction;
        conflicts and cosines are the same for (j, i). Figures that do not exist are None. With
        several segments, ``by_segment`` repeats the pairs for each. Where gradients were not
        measured in some steps, ``unmeasured`` is their number, and the rest is about the others.

        ``evidence`` (:class:`~gradsurgery.evidence.Evidence`) stands with the pairs that met, once
        for both directions; in ``pairs`` it is of the whole model's cosine, in each step one.
        """
        self._add_up()
        segments = self.segments or ["model"]
        sums = self._sums or _initial(len(segments), len(self.tasks), torch.device("cpu"))
        sums = {name: value.cpu() for name, value in sums.items()}
        batches = sums["closed"] + _moments(sums["open"])
        steps = sums["changed"].item()
        summary: Summary = {
            "window": int(sums["steps"]) + self._skipped,
            "method": self.method,
            "tasks": list(self.tasks),
            "segments": len(segments),
            "gradients": {
                "possible": int(sums["active"].sum()),
                "altered": _count(sums["active_altered"].sum().item()),
            },
            "pairs": self._pairs(
                {key: add(sums[key], 0) for key, (_, add) in _PAIRWISE.items()}, batches[0]
            ),
            "norms": self._means(sums["norm"], sums["present"]),
            "weights": self._means(sums["weight"], sums["weighted"]),
            "change": {
                "mean": _ratio(sums["change"].item(), steps),
                "max": sums["most"].item() if steps else None,
            },
            "nonfinite": int(sums["nonfinite"]) + self._skipped,
        }
        if sums["steps"] >= LOST and sums["nonfinite"] == sums["steps"]:  # counted on the device
            _warn_of_lost(summary["window"], [])
        if sums["unmeasured"]:
            summary["unmeasured"] = int(sums["unmeasured"])
        if len(segments) > 1:
            summary["by_segment"] = [
                {
                    "segment": name,
                    "pairs": self._pairs(
                        {key: sums[key][s] for key in _PAIRWISE}, batches[1 + s], len(segments)
                    ),
                }
                for s, name in enumerate(segments)
            ]
        return summary

    def verdict(self) -> str:
        """Return in one sentence whether the window shows that tasks conflict, and what to do.

        A log's windows together tell more: :func:`gradsurgery.report.verdict`.
        """
        pairs = {
            (pair["i"], pair["j"]): Evidence.from_json(pair["evidence"])
            for pair in self.summary()["pairs"]
            if "evidence" in pair
        }
        names = pair_names(pairs, "/")
        return sentence({names[pair]: evidence for pair, evidence in pairs.items()})

    def scalars(self) -> dict[str, float]:
        """Return the window as flat ``{name: number}``, for any logger; figures without a value are
        left out, and what is the same for (i, j) and (j, i) stands there once.

        A pair is called ``i-j``, followed by the tasks' positions (``.0-1``) if another pair would
        have the same name.
        """
        summary = self.summary()
        gradients = summary["gradients"]
        values: dict[str, float | None] = {
            "altered": _ratio(gradients["altered"], gradients["possible"]),
            "change": summary["change"]["mean"],
            "nonfinite": float(summary["nonfinite"]),
            "unmeasured": summary.get("unmeasured"),
        }
        names = pair_names(permutations(self.tasks, 2), "-")
        position = {task: n for n, task in enumerate(self.tasks)}
        for pair in summary["pairs"]:
            name = names[pair["i"], pair["j"]]
            if position[pair["i"]] < position[pair["j"]]:
                values[f"cosine/{name}"] = pair["cosine"]["mean"]
                values[f"conflicts/{name}"] = _ratio(pair["conflicts"], pair["possible"])
            values[f"altered/{name}"] = _ratio(pair["altered"], pair["possible"])
            values[f"target/{name}"] = pair["target"]
        values |= {f"norm/{task}": norm for task, norm in summary["norms"].items()}
        values |= {f"weight/{task}": weight for task, weight in summary["weights"].items()}
        return {f"surgery/{name}": value for name, value in values.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return the window, so that a resumed run logs what the run that never stopped does."""
        self._add_up()
        return {
            "tasks": list(self.tasks),
            "skipped": self._skipped,
            "begun": self._begun,
            "segments": list(self.segments),
            "sums": {name: value.clone() for name, value in self._sums.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the window that :meth:`state_dict` returned.

        Raises:
            ValueError: for the window of other tasks, or what no window can be; the one under way
                is kept then.
        """
        tasks = list(state_dict.get("tasks", self.tasks))
        if tasks != list(self.tasks):
            raise ValueError(f"the window is of tasks {tasks}, and these are {list(self.tasks)}")
        missing = {"skipped", "segments", "sums"} - state_dict.keys()
        if missing:
            raise ValueError(f"the window has no {', '.join(sorted(missing))}")
        segments = [str(segment) for segment in state_dict["segments"]]
        skipped, begun = state_dict["skipped"], state_dict.get("begun", 0)
        _check_number("skipped", skipped, math.inf)
        _check_number("begun", begun, BATCH)
        sums = _checked_sums(dict(state_dict["sums"]), len(segments), len(self.tasks))
        self._waiting = []
        self._skipped, self._begun, self.segments, self._sums = skipped, begun, segments, sums

    def _make_room(self, segments: Sequence[str], device: torch.device) -> None:
        """Make sums for these segments on the device; what was added up so far is kept."""
        sums = _initial(len(segments), len(self.tasks), device)
        # By name: a window that was loaded may have had them in another sequence.
        unknown = [name for name in self.segments if name not in segments]
        if unknown:
            warn(
                f"the statistics that were loaded are of segments {', '.join(unknown[:3])}, which "
                "this optimizer does not have: they begin anew"
            )
            self.segments, self._sums = [], {}
        rows = [list(segments).index(name) for name in self.segments]
        for name, value in self._sums.items():
            if name in _PAIRWISE:
                sums[name][rows] = value.to(device)
            elif name in _BATCHED:
                sums[name][[0, *(1 + row for row in rows)]] = value.to(device)
            else:
                sums[name].copy_(value)
        self.segments, self._sums = list(segments), sums

    def _add_up(self) -> None:
        """Add the steps that wait to the sums, all at once."""
        if not self._waiting:
            return
        steps, self._waiting = self._waiting, []
        device = self._sums["steps"].device
        gram = torch.stack([step.gram.to(device) for step in steps])  # [T, S, K, K]
        finite = _finite(steps, device)
        # What is not finite must not enter a sum, not even times zero.
        gram = torch.where(finite[:, None, None, None], gram, 0)
        weights = torch.stack([step.verdict.weights.to(device) for step in steps])
        altered = _altered(steps, gram)
        active = to_device(torch.stack([step.active for step in steps]), device)
        measured = torch.tensor([s.measured for s in steps], dtype=torch.bool, device="cpu")
        unmeasured = ~to_device(measured, device)
        self._add("steps", torch.ones_like(finite)[:, None])
        self._add("nonfinite", ~finite[:, None])
        self._add("unmeasured", (unmeasured & finite)[:, None])
        self._add("active", active & (finite & ~unmeasured)[:, None])
        self._add_pairs(gram, altered)
        self._add_batches(gram)
        factors = torch.tensor([s.factor for s in steps], dtype=torch.float64, device="cpu")
        self._add_tasks(gram, altered, to_device(factors, device))
        self._add_weights(gram, weights, active & (unmeasured & finite)[:, None])
        self._add_change(gram, weights)
        if "target" in steps[-1].verdict.state:
            self._sums["target"].copy_(steps[-1].verdict.state["target"])

    def _add(self, name: str, values: Tensor) -> None:
        """Add ``values`` ([T, ...]) one after the other: the bits do not depend on T."""
        total = self._sums[name]
        total.copy_(torch.cat([total[None], values.to(total.dtype)]).cumsum(0)[-1])

    def _add_pairs(self, gram: Tensor, altered: Tensor) -> None:
        pair, cosine = _cosines(gram)
        self._add("possible", pair)
        self._add("conflicts", cosine < 0)
        self._add("altered", altered)
        self._add("cosine", cosine)
        sums = self._sums
        low, high = (torch.where(pair, cosine, end) for end in (math.inf, -math.inf))
        sums["lowest"].copy_(torch.minimum(sums["lowest"], low.amin(0)))
        sums["highest"].copy_(torch.maximum(sums["highest"], high.amax(0)))

    def _add_batches(self, gram: Tensor) -> None:
        """Add to the open batch, and close it whenever it has ``BATCH`` steps."""
        whole = gram.sum(1, keepdim=True)
        pair, cosine = _cosines(torch.cat([whole, gram], 1))
        values = torch.stack([cosine, pair.to(cosine.dtype)], 2)  # [T, 1 + S, 2, K, K]
        while len(values):
            room = BATCH - self._begun
            self._add("open", values[:room])
            self._begun += len(values[:room])
            values = values[room:]
            if self._begun == BATCH:
                self._sums["closed"] += _moments(self._sums["open"])
                self._sums["open"].zero_()
                self._begun = 0

    def _add_tasks(self, gram: Tensor, altered: Tensor, factors: Tensor) -> None:
        square = gram.diagonal(dim1=-2, dim2=-1)  # [T, S, K]
        present = square > 0
        self._add("active_altered", altered.amax((1, -1)))
        self._add("present", present.any(1))
        self._add("norm", square.sum(1).sqrt() / factors[:, None])

    def _add_weights(self, gram: Tensor, weights: Tensor, unmeasured: Tensor) -> None:
        """``unmeasured``: [T, K] bool, the tasks whose loss was weighted and no gradient seen."""
        weighted = (gram.diagonal(dim1=-2, dim2=-1) > 0) | unmeasured[:, None]  # [T, S, K]
        weight = torch.where(weighted, weights, 0).sum(1)
        self._add("weighted", weighted.any(1))
        self._add("weight", weight / weighted.sum(1).clamp(min=1))

    def _add_change(self, gram: Tensor, weights: Tensor) -> None:
        off = weights - 1
        changed = torch.einsum("tsi,tsij,tsj->t", off, gram, off).clamp(min=0)
        plain = gram.sum((1, 2, 3)).clamp(min=0)
        change = torch.where(plain > 0, (changed / plain).sqrt(), 0)[:, None]
        self._add("changed", plain[:, None] > 0)
        self._add("change", change)
        self._sums["most"].copy_(torch.maximum(self._sums["most"], change.amax(0)))

    def _pairs(
        self, sums: Mapping[str, Tensor], batches: Tensor, segments: int = 1
    ) -> list[PairSummary]:
        """Return the ordered pairs' figures from sums of shape [K, K], and batches [6, K, K]."""
        values = torch.stack([sums[name] for name in _PAIRWISE], dim=-1).tolist()  # [K][K][7]
        moments = batches.movedim(0, -1).tolist()  # [K][K][6]
        tasks = range(len(self.tasks))
        judged = segments * sum(moments[i][j][2] > 0 for i, j in combinations(tasks, 2))
        return [
            _pair_counts(values[i][j], moments[i][j] if i < j else ()).to_json(
                self.tasks[i], self.tasks[j], judged
            )
            for i, j in permutations(tasks, 2)
        ]

    def _means(self, total: Tensor, count: Tensor) -> dict[str, float | None]:
        """Return the mean by task from sums of shape [K]."""
        means = map(_ratio, total.tolist(), count.tolist())
        return dict(zip(self.tasks, means, strict=True))


def _initial(segments: int, tasks: int, device: torch.device) -> dict[str, Tensor]:
    """The sums of no step at all."""

    def full(start: float, *shape: int) -> Tensor:
        return torch.full(shape, start, dtype=torch.float64, device=device)

    return {
        **{name: full(start, segments, tasks, tasks) for name, (start, _) in _PAIRWISE.items()},
        **{name: full(0.0, 1 + segments, n, tasks, tasks) for name, n in _BATCHED.items()},
        **{name: full(0.0, tasks) for name in _TASKWISE},
        **{name: full(0.0, 1) for name in _SCALAR},
    }


def _checked_sums(sums: dict[str, Any], segments: int, tasks: int) -> dict[str, Tensor]:
    """Return copies of loaded sums, those that older versions did not have among them.

    Raises:
        ValueError: for names, shapes or numbers that no window can have.
    """
    if not sums:
        return {}
    strange = [name for name, value in sums.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(f"the window's sums {strange} are no tensors")
    if "weighted" not in sums and "present" in sums:  # of a version that always measured
        sums["weighted"] = sums["present"]
    device = next(iter(sums.values())).device
    expected = _initial(segments, tasks, device)
    sums = {name: expected[name] for name in _LATER if name in expected} | sums
    if sums.keys() != expected.keys():
        raise ValueError(
            f"the window's sums are {sorted(expected)}, not {sorted(sums)}: it is damaged, or of a "
            "later version"
        )
    for name, start in expected.items():
        value = sums[name]
        if value.shape != start.shape:
            raise ValueError(
                f"the window's sum {name!r} has shape {list(value.shape)}, and {tasks} tasks and "
                f"{segments} segments have {list(start.shape)}"
            )
        if value.is_complex() or _impossible(name, value, sums):
            raise ValueError(f"the window's sum {name!r} cannot be {value.flatten().tolist()[:8]}")
    return {name: value.to(device, torch.float64, copy=True) for name, value in sums.items()}


def _impossible(name: str, value: Tensor, sums: Mapping[str, Tensor]) -> bool:
    """Whether no steps add up to this ``value`` of one of the ``sums``."""
    bad = value.isnan() & (name not in _UNDEFINED)
    if name in _OPEN:  # where a pair never met they are what they started from
        met = sums["possible"] > 0
        return not bool(torch.where(met, value.abs() <= 1 + 1e-6, value.isinf()).all())
    bad |= value.isinf()
    bad |= (value < 0) & (name not in _SIGNED)
    # A cosine counts for a step at most, and a batch for the square of its steps.
    most = {
        **dict.fromkeys(_UP_TO_STEPS, sums["steps"]),
        **dict.fromkeys(_UP_TO_POSSIBLE, sums["possible"]),
        "open": torch.full_like(sums["steps"], BATCH),
        "closed": BATCH * sums["steps"],
    }
    if name in most:
        bad |= value.abs() > most[name] * (1 + 1e-6)
    return bool(bad.any())


def _check_number(name: str, value: object, below: float) -> None:
    if not isinstance(value, int) or not 0 <= value < below:
        raise ValueError(f"the window's {name!r} is a number of steps, not {value!r}")


def _warn_of_lost(steps: int, tasks: Sequence[str]) -> None:
    warn(
        f"all of the last {steps} steps had gradients that are not finite: look at the loss of "
        f"{', '.join(tasks) or 'every task'} (a missing label that is not masked out makes it "
        "NaN), at the weights, which one such step turns into NaN where no GradScaler skips it, "
        "and at the learning rate"
    )


class _Step(NamedTuple):
    """One step as it came."""

    gram: Tensor
    verdict: Verdict
    active: Tensor
    finite: Tensor | None
    measured: bool
    factor: float


def _finite(steps: Sequence[_Step], device: torch.device) -> Tensor:
    """Return ``[T]`` bool."""
    yes = torch.ones((), dtype=torch.bool, device=device)
    return torch.stack([yes if s.finite is None else s.finite.to(device) for s in steps])


def _altered(steps: Sequence[_Step], gram: Tensor) -> Tensor:
    """Return ``[T, S, K, K]`` bool; NaN, which stays in every sum, where it has no meaning."""
    altered = [s.verdict.altered.to(gram.device) for s in steps if s.verdict.altered is not None]
    return torch.stack(altered) if len(altered) == len(steps) else torch.full_like(gram, math.nan)


def _cosines(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return where pairs met, ``[..., K, K]`` bool, and their cosines, zero elsewhere."""
    norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    product = norm[..., :, None] * norm[..., None, :]
    pair = (product > 0) & ~torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)
    return pair, torch.where(pair, gram / product, 0).clamp(-1, 1)


def _moments(batch: Tensor) -> Tensor:
    """Return what a batch adds to the sums of :class:`Evidence`: ``[.., 2, K, K]`` to 6."""
    s, n = batch.unbind(-3)
    return torch.stack([(n > 0).to(s.dtype), s, n, s * s, s * n, n * n], -3)


def _pair_counts(sums: Sequence[float], moments: Sequence[float]) -> PairCounts:
    possible, conflicts, altered, cosine, lowest, highest, target = sums
    counts = int(possible), int(conflicts), _count(altered)
    ends = lowest, highest, None if math.isnan(target) else target
    return PairCounts(*counts, cosine, *ends, Evidence(*moments))


def _count(total: float) -> int | None:
    return None if math.isnan(total) else int(total)


def _ratio(total: float | None, count: float) -> float | None:
    return total / count if count and total is not None else None
