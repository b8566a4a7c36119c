"""Conflict statistics: counts and cosines of conflicts, and the change that surgery made.

Everything is read off the Gram matrix and the verdict; nothing here changes a gradient. Steps are
put aside as the tensors they are, added up ``WAITING`` at a time on the device that holds them, and
turned into Python numbers only when somebody asks, once a window.

The words, as they are used throughout:

* a *conflict* is a pair of original gradients with negative cosine;
* pair (i, j) is *altered* when gradient i received a multiple of gradient j, gradient i when any j
  did that, in any segment; with a method for which that has no meaning it is None;
* pairs are counted once per step and segment in which both gradients exist and are not zero;
* *change* is |u - s| / |s|: u the update, s the plain sum, over all shared parameters.

Counts alone mislead. Gradients that are nearly orthogonal conflict in half of the steps by chance,
and it means nothing: look at the cosines and at the change beside the counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradsurgery.methods import Verdict
from gradsurgery.summary import PairCounts, PairSummary, Summary
from gradsurgery.transfer import to_device

#: Steps, and numbers of their Gram matrices, that wait at most before they are added up.
WAITING = 32
ELEMENTS = 1 << 20

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
_TASKWISE = ("active", "active_altered", "present", "norm", "weight")
_SCALAR = ("steps", "nonfinite", "changed", "change", "most")


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
        self.tasks = tuple(tasks)
        self.method = method
        self.segments: list[str] = []
        self.reset()

    def reset(self) -> None:
        """Begin a new window: everything back to zero."""
        self._skipped = 0
        self._waiting: list[_Step] = []
        self._sums: dict[str, Tensor] = {}  # made by the first step, on its device

    def skip(self) -> None:
        """Count a step with a non-finite gradient, which enters no other figure."""
        self._skipped += 1

    def update(
        self,
        gram: Tensor,
        verdict: Verdict,
        segments: Sequence[str],
        active: Tensor,
        finite: Tensor | None = None,
    ) -> None:
        """Add one step.

        Args:
            gram: ``[S, K, K]`` float64.
            verdict: what the method decided on it. Neither may be written to afterwards.
            segments: the S segments' names.
            active: ``[K]`` bool, the tasks that ran in this step.
            finite: scalar bool on the device of ``gram``; where it is False the step is counted as
                :meth:`skip` does. None for True.
        """
        sums = self._sums
        if not sums or len(segments) != len(self.segments) or sums["steps"].device != gram.device:
            self._add_up()
            self._make_room(segments, gram.device)
        self._waiting.append(_Step(gram, verdict, active, finite))
        if len(self._waiting) >= min(WAITING, ELEMENTS // gram.numel()):
            self._add_up()

    def summary(self) -> Summary:
        """Return the window in plain Python values, as :class:`~gradsurgery.ConflictLog` writes it.

        ``pairs`` lists ordered pairs (i, j), since alterations and targets have a direction;
        conflicts and cosines are the same for (j, i). Figures that do not exist are None. With
        several segments, ``by_segment`` repeats the pairs for each.
        """
        self._add_up()
        segments = self.segments or ["model"]
        sums = self._sums or _initial(len(segments), len(self.tasks), torch.device("cpu"))
        sums = {name: value.cpu() for name, value in sums.items()}
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
            "pairs": self._pairs({key: add(sums[key], 0) for key, (_, add) in _PAIRWISE.items()}),
            "norms": self._means(sums["norm"], sums["present"]),
            "weights": self._means(sums["weight"], sums["present"]),
            "change": {
                "mean": _ratio(sums["change"].item(), steps),
                "max": sums["most"].item() if steps else None,
            },
            "nonfinite": int(sums["nonfinite"]) + self._skipped,
        }
        if len(segments) > 1:
            summary["by_segment"] = [
                {"segment": name, "pairs": self._pairs({key: sums[key][s] for key in _PAIRWISE})}
                for s, name in enumerate(segments)
            ]
        return summary

    def scalars(self) -> dict[str, float]:
        """Return the window as flat ``{name: number}``, for any logger; figures without a value are
        left out, and what is the same for (i, j) and (j, i) stands there once."""
        summary = self.summary()
        gradients = summary["gradients"]
        values: dict[str, float | None] = {
            "altered": _ratio(gradients["altered"], gradients["possible"]),
            "change": summary["change"]["mean"],
            "nonfinite": float(summary["nonfinite"]),
        }
        for pair in summary["pairs"]:
            name = f"{pair['i']}-{pair['j']}"
            if self.tasks.index(pair["i"]) < self.tasks.index(pair["j"]):
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
            "skipped": self._skipped,
            "segments": list(self.segments),
            "sums": {name: value.clone() for name, value in self._sums.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the window that :meth:`state_dict` returned."""
        self._waiting = []
        self._skipped = state_dict["skipped"]
        self.segments = list(state_dict["segments"])
        self._sums = {name: value.clone() for name, value in state_dict["sums"].items()}

    def _make_room(self, segments: Sequence[str], device: torch.device) -> None:
        """Make sums for these segments on the device; what was added up so far is kept."""
        sums = _initial(len(segments), len(self.tasks), device)
        for name, value in self._sums.items():
            sums[name][: len(value)] = value.to(device)
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
        self._add("steps", torch.ones_like(finite)[:, None])
        self._add("nonfinite", ~finite[:, None])
        self._add("active", active & finite[:, None])
        self._add_pairs(gram, altered)
        self._add_tasks(gram, weights, altered)
        self._add_change(gram, weights)
        if "target" in steps[-1].verdict.state:
            self._sums["target"].copy_(steps[-1].verdict.state["target"])

    def _add(self, name: str, values: Tensor) -> None:
        """Add ``values`` ([T, ...]) one after the other: the bits do not depend on T."""
        total = self._sums[name]
        total.copy_(torch.cat([total[None], values.to(total.dtype)]).cumsum(0)[-1])

    def _add_pairs(self, gram: Tensor, altered: Tensor) -> None:
        norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()
        product = norm[..., :, None] * norm[..., None, :]
        pair = (product > 0) & ~torch.eye(len(self.tasks), dtype=torch.bool, device=gram.device)
        cosine = torch.where(pair, gram / product, 0).clamp(-1, 1)
        self._add("possible", pair)
        self._add("conflicts", cosine < 0)
        self._add("altered", altered)
        self._add("cosine", cosine)
        sums = self._sums
        low, high = (torch.where(pair, cosine, end) for end in (math.inf, -math.inf))
        sums["lowest"].copy_(torch.minimum(sums["lowest"], low.amin(0)))
        sums["highest"].copy_(torch.maximum(sums["highest"], high.amax(0)))

    def _add_tasks(self, gram: Tensor, weights: Tensor, altered: Tensor) -> None:
        square = gram.diagonal(dim1=-2, dim2=-1)  # [T, S, K]
        present = square > 0
        self._add("active_altered", altered.amax((1, -1)))
        self._add("present", present.any(1))
        self._add("norm", square.sum(1).sqrt())
        weight = torch.where(present, weights, 0).sum(1)
        self._add("weight", weight / present.sum(1).clamp(min=1))

    def _add_change(self, gram: Tensor, weights: Tensor) -> None:
        off = weights - 1
        changed = torch.einsum("tsi,tsij,tsj->t", off, gram, off).clamp(min=0)
        plain = gram.sum((1, 2, 3)).clamp(min=0)
        change = torch.where(plain > 0, (changed / plain).sqrt(), 0)[:, None]
        self._add("changed", plain[:, None] > 0)
        self._add("change", change)
        self._sums["most"].copy_(torch.maximum(self._sums["most"], change.amax(0)))

    def _pairs(self, sums: Mapping[str, Tensor]) -> list[PairSummary]:
        """Return the ordered pairs' figures from sums of shape [K, K]."""
        values = torch.stack([sums[name] for name in _PAIRWISE], dim=-1).tolist()  # [K][K][7]
        return [
            _pair_counts(values[i][j]).to_json(self.tasks[i], self.tasks[j])
            for i, j in permutations(range(len(self.tasks)), 2)
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
        **{name: full(0.0, tasks) for name in _TASKWISE},
        **{name: full(0.0, 1) for name in _SCALAR},
    }


class _Step(NamedTuple):
    """One step as it came."""

    gram: Tensor
    verdict: Verdict
    active: Tensor
    finite: Tensor | None


def _finite(steps: Sequence[_Step], device: torch.device) -> Tensor:
    """Return ``[T]`` bool."""
    yes = torch.ones((), dtype=torch.bool, device=device)
    return torch.stack([yes if s.finite is None else s.finite.to(device) for s in steps])


def _altered(steps: Sequence[_Step], gram: Tensor) -> Tensor:
    """Return ``[T, S, K, K]`` bool; NaN, which stays in every sum, where it has no meaning."""
    altered = [s.verdict.altered.to(gram.device) for s in steps if s.verdict.altered is not None]
    return torch.stack(altered) if len(altered) == len(steps) else torch.full_like(gram, math.nan)


def _pair_counts(sums: Sequence[float]) -> PairCounts:
    possible, conflicts, altered, cosine, lowest, highest, target = sums
    counts = int(possible), int(conflicts), _count(altered)
    return PairCounts(*counts, cosine, lowest, highest, None if math.isnan(target) else target)


def _count(total: float) -> int | None:
    return None if math.isnan(total) else int(total)


def _ratio(total: float | None, count: float) -> float | None:
    return total / count if count and total is not None else None
