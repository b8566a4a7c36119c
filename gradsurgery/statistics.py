"""Conflict statistics: do the tasks conflict, and what did surgery do about it?

Everything is read off the Gram matrix and the verdict; nothing here changes a gradient. Steps are
put aside as the tensors they are, added up ``TOGETHER`` at a time on the device that holds them,
and turned into Python numbers only when somebody asks, once a window.

The words, as they are used throughout:

* a *conflict* is a pair of original gradients with negative cosine;
* pair (i, j) is *altered* when gradient i received a multiple of gradient j, gradient i when any j
  did that, in any segment;
* pairs are counted once per step and segment in which both gradients exist and are not zero;
* *change* is |u - s| / |s|: u the update, s the plain sum, over all shared parameters.

Counts alone mislead. Gradients that are nearly orthogonal conflict in half of the steps by chance,
and it means nothing: look at the cosines and at the change beside the counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradsurgery.methods import Verdict
from gradsurgery.transfer import to_device

#: Steps, and numbers of their Gram matrices, that wait at most before they are added up.
TOGETHER = 32
ELEMENTS = 1 << 20


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
        self._sums: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Begin a new window: everything back to zero."""
        self._skipped = 0
        self._waiting: list[_Step] = []
        for name, value in self._sums.items():
            value.fill_(_PAIRWISE.get(name, 0.0))  # in place: a captured CUDA graph adds to it

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
        if len(segments) != len(self.segments) or not self._sums:
            self._add_up()
            self._resize(segments, gram.device)
        if self._sums["steps"].device != gram.device:  # made by a summary, or loaded
            self._sums = {name: value.to(gram.device) for name, value in self._sums.items()}
        self._waiting.append(_Step(gram, verdict, active, finite))
        capturing = gram.is_cuda and torch.cuda.is_current_stream_capturing()
        most = min(TOGETHER, ELEMENTS // gram.numel())
        if capturing or len(self._waiting) >= most:
            self._add_up()

    def summary(self) -> dict[str, Any]:
        """Return the window in plain Python values, as :class:`~gradsurgery.ConflictLog` writes it.

        ``pairs`` lists ordered pairs (i, j), since alterations and targets have a direction;
        conflicts and cosines are the same for (j, i). Figures that do not exist are None. With
        several segments, ``by_segment`` repeats the pairs for each.
        """
        if not self._sums:
            self._resize(self.segments or ["model"], torch.device("cpu"))
        self._add_up()
        sums = {name: value.cpu() for name, value in self._sums.items()}
        steps = sums["changed"].item()
        found = {
            "window": int(sums["steps"]) + self._skipped,
            "method": self.method,
            "tasks": list(self.tasks),
            "segments": len(self.segments),
            "gradients": {
                "possible": int(sums["active"].sum()),
                "altered": int(sums["active_altered"].sum()),
            },
            "pairs": self._pairs({name: _over_segments(name, sums[name]) for name in _PAIRWISE}),
            "norms": _by_task(self.tasks, sums["norm"], sums["present"]),
            "weights": _by_task(self.tasks, sums["weight"], sums["present"]),
            "change": {
                "mean": _ratio(sums["change"].item(), steps),
                "max": sums["most"].item() if steps else None,
            },
            "nonfinite": int(sums["nonfinite"]) + self._skipped,
        }
        if len(self.segments) > 1:
            found["by_segment"] = [
                {"segment": name, "pairs": self._pairs({key: sums[key][s] for key in _PAIRWISE})}
                for s, name in enumerate(self.segments)
            ]
        return found

    def scalars(self) -> dict[str, float]:
        """Return the window as flat ``{name: number}``, for any logger; figures without a value are
        left out."""
        return dict(_flatten(self.summary()))

    def state_dict(self) -> dict[str, Any]:
        """Return the window, so that a resumed run logs what the run that never stopped does."""
        self._add_up()
        begun = bool(self._sums) and bool(self._sums["steps"] > 0)
        return {
            "skipped": self._skipped,
            "segments": list(self.segments),
            "sums": {name: value.clone() for name, value in self._sums.items()} if begun else {},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the window that :meth:`state_dict` returned."""
        self._waiting = []
        self._skipped = state_dict["skipped"]
        self.segments = list(state_dict["segments"])
        self._sums = {name: value.clone() for name, value in state_dict["sums"].items()}

    def _resize(self, segments: Sequence[str], device: torch.device) -> None:
        """Make room for these segments; the sums so far stay where they are."""
        size, tasks = len(segments), len(self.tasks)
        self.segments = list(segments)

        def grown(name: str, shape: tuple[int, ...], fill: float) -> Tensor:
            value = torch.full(shape, fill, dtype=torch.float64, device=device)
            if name in self._sums:
                value[: len(self._sums[name])] = self._sums[name]
            return value

        pairwise = {n: grown(n, (size, tasks, tasks), fill) for n, fill in _PAIRWISE.items()}
        by_task = {n: grown(n, (tasks,), 0.0) for n in _TASKWISE}
        self._sums = {**pairwise, **by_task, **{n: grown(n, (1,), 0.0) for n in _SCALAR}}

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
        altered = torch.stack([step.verdict.altered.to(device) for step in steps])
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
        self._add("active_altered", altered.any(-1).any(1))
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

    def _pairs(self, sums: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return the ordered pairs' figures from sums of shape [K, K]."""
        values = {name: value.tolist() for name, value in sums.items()}
        return [
            _pair(self.tasks[i], self.tasks[j], {name: v[i][j] for name, v in values.items()})
            for i in range(len(self.tasks))
            for j in range(len(self.tasks))
            if i != j
        ]


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


#: The sums of shape [S, K, K] and what they start from.
_PAIRWISE = {
    "possible": 0.0,
    "conflicts": 0.0,
    "altered": 0.0,
    "cosine": 0.0,
    "lowest": math.inf,
    "highest": -math.inf,
    "target": math.nan,
}
#: The sums of shape [K], and of shape [1].
_TASKWISE = ("active", "active_altered", "present", "norm", "weight")
_SCALAR = ("steps", "nonfinite", "changed", "change", "most")


def _over_segments(name: str, value: Tensor) -> Tensor:
    """Bring [S, K, K] to [K, K] the way the figure wants it."""
    if name == "lowest":
        return value.amin(0)
    if name == "highest":
        return value.amax(0)
    return value.mean(0) if name == "target" else value.sum(0)


def _pair(i: str, j: str, sums: dict[str, float]) -> dict[str, Any]:
    possible = sums["possible"]
    return {
        "i": i,
        "j": j,
        "possible": int(possible),
        "conflicts": int(sums["conflicts"]),
        "altered": int(sums["altered"]),
        "cosine": {
            "mean": _ratio(sums["cosine"], possible),
            "min": sums["lowest"] if possible else None,
            "max": sums["highest"] if possible else None,
        },
        "target": None if math.isnan(sums["target"]) else sums["target"],
    }


def _by_task(tasks: Sequence[str], total: Tensor, count: Tensor) -> dict[str, float | None]:
    pairs = zip(total.tolist(), count.tolist(), strict=True)
    return {task: _ratio(*pair) for task, pair in zip(tasks, pairs, strict=True)}


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None


def _flatten(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The scalars' names: grouped by what they are, each unordered pair once but for directions."""
    tasks = summary["tasks"]
    gradients = summary["gradients"]
    rows: list[tuple[str, float | None]] = [
        ("altered", _ratio(gradients["altered"], gradients["possible"])),
        ("change", summary["change"]["mean"]),
        ("nonfinite", float(summary["nonfinite"])),
    ]
    for pair in summary["pairs"]:
        i, j = pair["i"], pair["j"]
        if tasks.index(i) < tasks.index(j):
            rows.append((f"cosine/{i}-{j}", pair["cosine"]["mean"]))
            rows.append((f"conflicts/{i}-{j}", _ratio(pair["conflicts"], pair["possible"])))
        rows.append((f"altered/{i}-{j}", _ratio(pair["altered"], pair["possible"])))
        rows.append((f"target/{i}-{j}", pair["target"]))
    for name in ("norms", "weights"):
        rows += [(f"{name[:-1]}/{task}", value) for task, value in summary[name].items()]
    yield from ((f"surgery/{name}", value) for name, value in rows if value is not None)
