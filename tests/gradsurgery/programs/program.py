"""What a random program is: a model, an optimizer around it, and a sequence of public calls.

Everything is plain data, so that hypothesis can shrink a program that fails and print what is left.
Any sequence of calls is a program: the reference says what each does, or which error it raises.

Gradients are small multiples of 1/8, which all dtypes hold exactly: what is captured is known to
the bit, and only what surgery makes of it has a tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from gradsurgery import LossWeighting
from tests.gradsurgery.programs.rules import RULES
from tests.methods import METHODS

TASKS = ("a", "b", "c", "d")
BASES = ("sgd", "momentum", "adam")
DTYPES = ("float64", "float32", "bfloat16")
GROUPINGS = ("model", "layer", "tensor", "by digit")
SHAPES = ((), (3,), (7,), (4, 3), (2, 5), (2, 2, 3))
#: The methods; those of the losses alone are few and have a backward of their own.
OF_LOSSES = [name for name in RULES if isinstance(METHODS[name].make(0), LossWeighting)]
OF_GRADIENTS = [name for name in RULES if name not in OF_LOSSES]
#: Rows and columns of an embedding.
TABLE = (6, 2)


@dataclass(frozen=True)
class Weight:
    """A parameter.

    Attributes:
        name: with a numbered layer in front, such as "1.w0".
        shape: its shape.
        dtype: its dtype.
        kind: "dense"; "tied", entering each loss twice; "sparse", an embedding; "half sparse", an
            embedding that the last of its users multiplies by as a dense matrix; "trunk", below
            the features.
        users: the tasks that depend on it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    users: tuple[int, ...]


@dataclass(frozen=True)
class Setup:
    """The model, and the optimizer.

    Attributes:
        tasks: their number.
        groups: for each base optimizer its parameter groups.
        bases: the kind of each: "sgd", "momentum" or "adam".
        method: a row of ``tests.methods``.
        options: further arguments of GradientSurgery.
    """

    tasks: int
    groups: tuple[tuple[tuple[Weight, ...], ...], ...]
    bases: tuple[str, ...]
    method: str
    grouping: str
    options: tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Batch:
    """A task's loss: its value, and where its gradients come from.

    Attributes:
        task: its position.
        seed: of the gradients.
        value: of the loss.
        relation: "free", "zero", or "same" and "opposite", of the gradients that all batches of
            this seed share.
        skips: the loss leaves out every third parameter.
        poison: "inf" or "nan" in one element of a gradient; "" for none.
    """

    task: int
    seed: int
    value: float
    relation: str = "free"
    skips: bool = False
    poison: str = ""


@dataclass(frozen=True)
class Join:
    """``(factor * optimizer.join(losses, combine)).backward()``."""

    batches: tuple[Batch, ...]
    combine: bool = True
    factor: float = 1.0
    features: bool = False
    sequence: bool = False


@dataclass(frozen=True)
class Task:
    """``with optimizer.task(name, loss=...): loss.backward()``."""

    batch: Batch
    told: bool = True
    fails: bool = False


@dataclass(frozen=True)
class Combine:
    """``optimizer.combine(losses=..., scale=...)``; ``told``: the tasks whose losses are passed."""

    told: tuple[int, ...] | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Step:
    """``optimizer.step()``, unless a gradient is not finite: then it is skipped, as by a scaler."""


@dataclass(frozen=True)
class ZeroGrad:
    """``optimizer.zero_grad(set_to_none)``."""

    set_to_none: bool = True


@dataclass(frozen=True)
class Discard:
    """``optimizer.discard()``."""


@dataclass(frozen=True)
class Auxiliary:
    """The backward of a loss outside of surgery."""

    batch: Batch


@dataclass(frozen=True)
class Clip:
    """``torch.nn.utils.clip_grad_norm_``."""

    norm: float = 1.0


@dataclass(frozen=True)
class Reload:
    """``load_state_dict(state_dict())`` into a fresh optimizer; with the ``statistics``, or not."""

    statistics: bool = True


@dataclass(frozen=True)
class Copy:
    """Parameters and optimizer are copied, by "deepcopy" or "pickle", and the copies go on."""

    how: str = "deepcopy"


@dataclass(frozen=True)
class AddGroup:
    """``optimizer.add_param_group``, to the first base or the last."""

    weight: Weight
    first: bool = False


@dataclass(frozen=True)
class Reset:
    """``optimizer.conflicts.reset()``."""


Call = (
    Join | Task | Combine | Step | ZeroGrad | Discard | Auxiliary | Clip | Reload | Copy | AddGroup
    | Reset
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A setup, and what is called."""

    setup: Setup
    calls: tuple[Call, ...]


# ---------------------------------------------------------------------- strategies


@st.composite
def weights(draw: st.DrawFn, number: int, tasks: int, kinds: Sequence[str]) -> Weight:
    kind = draw(st.sampled_from(kinds))
    users = draw(st.lists(st.booleans(), min_size=tasks, max_size=tasks))
    return Weight(
        f"{draw(st.integers(0, 2))}.w{number}",
        TABLE if "sparse" in kind else draw(st.sampled_from(SHAPES)),
        draw(st.sampled_from(DTYPES)),
        kind,
        tuple(k for k in range(tasks) if users[k]),
    )


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    tasks = draw(st.integers(1, len(TASKS)))
    bases = tuple(draw(st.lists(st.sampled_from(BASES), min_size=1, max_size=2)))
    one_dtype = draw(st.sampled_from([*DTYPES, None]))
    number, groups = 0, []
    for position, base in enumerate(bases):
        kinds = ["dense", "dense", "tied"]
        if base == "sgd":  # the others take no sparse gradients
            kinds += ["sparse", "half sparse"]
        base_groups = []
        for size in draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)):
            group = []
            for _ in range(size):
                group.append(draw(weights(number, tasks, kinds)))
                number += 1
            base_groups.append(group)
        if position == 0:  # what all tasks use, and what may lie below features
            everyone = tuple(range(tasks))
            dtype = draw(st.sampled_from(DTYPES))
            base_groups[0].insert(0, Weight(f"0.w{number}", (4, 3), dtype, "dense", everyone))
            number += 1
            if draw(st.sampled_from([True, True, False])):
                dtype = draw(st.sampled_from(DTYPES))
                base_groups[-1].append(Weight(f"1.w{number}", (8,), dtype, "trunk", everyone))
                number += 1
        groups.append(base_groups)
    if one_dtype:
        groups = [
            [[Weight(w.name, w.shape, one_dtype, w.kind, w.users) for w in g] for g in gs]
            for gs in groups
        ]
    method = draw(st.one_of(st.sampled_from(OF_GRADIENTS), st.sampled_from(OF_LOSSES)))
    return Setup(
        tasks,
        tuple(tuple(map(tuple, base_groups)) for base_groups in groups),
        bases,
        method,
        draw(st.sampled_from(GROUPINGS)),
        tuple(sorted(draw(options(method)).items())),
    )


@st.composite
def options(draw: st.DrawFn, method: str) -> dict[str, object]:
    """Options that the method can have, each away from its default now and then."""
    if method in OF_LOSSES:
        every = draw(st.sampled_from([None, None, 1, 2, 3]))
        return {} if every is None else {"observe_every": every}
    choices = {
        "task_only": draw(st.sampled_from([None, None, "plain", "weighted"])),
        "reduction": draw(st.sampled_from(["sum", "sum", "mean"])),
        "smoothing": draw(st.sampled_from([0.0, 0.0, 0.5])),
    }
    return {name: value for name, value in choices.items() if value not in (None, "sum", 0.0)}


@st.composite
def batches(draw: st.DrawFn, task: int, seed: int, poison: bool = True) -> Batch:
    return Batch(
        task,
        seed,
        draw(st.sampled_from([1.0, 2.0, 0.5, 3.0, 0.25])),
        draw(st.sampled_from(["free"] * 12 + ["zero", "same", "opposite"])),
        draw(st.sampled_from([False, False, False, True])),
        draw(st.sampled_from([""] * 50 + ["inf", "nan"])) if poison else "",
    )


SEEDS = st.integers(0, 2**16)
FACTORS = st.sampled_from([1.0, 1.0, 1.0, 0.5, 4.0, 1024.0])


@st.composite
def joins(draw: st.DrawFn, tasks: int, combine: bool) -> Join:
    seed, features = draw(SEEDS), draw(st.booleans())
    present = draw(st.sampled_from(["all", "all", "some"]))
    chosen = [k for k in range(tasks) if present == "all" or draw(st.booleans())]
    order = draw(st.permutations(chosen or [0]))
    return Join(
        tuple(draw(batches(k, seed)) for k in order),
        combine,
        draw(FACTORS),
        features and combine,
        draw(st.booleans()),
    )


@st.composite
def task_calls(draw: st.DrawFn, tasks: int) -> Task:
    return Task(
        draw(batches(draw(st.integers(0, tasks - 1)), draw(SEEDS))),
        draw(st.sampled_from([True, True, True, False])),
        draw(st.sampled_from([False] * 9 + [True])),
    )


@st.composite
def combines(draw: st.DrawFn, tasks: int) -> Combine:
    told = draw(st.sampled_from(["no", "no", "all", "some"]))
    names = tuple(k for k in range(tasks) if told == "all" or draw(st.booleans()))
    return Combine(None if told == "no" else names, draw(st.sampled_from([None, None, 1.0, 256.0])))


@st.composite
def care(draw: st.DrawFn, setup: Setup, number: int) -> Call:
    """What happens between steps, and must change nothing else."""
    grown = draw(weights(100 + number, setup.tasks, ["dense", "tied"]))
    choice = draw(st.sampled_from(["reload", "reload", "copy", "group", "reset"]))
    return {
        "reload": Reload(draw(st.booleans())),
        "copy": Copy(draw(st.sampled_from(["deepcopy", "pickle"]))),
        "group": AddGroup(grown, draw(st.booleans())),
        "reset": Reset(),
    }[choice]


@st.composite
def phrases(draw: st.DrawFn, setup: Setup, number: int) -> list[Call]:
    """Some calls in a row: mostly what users write, and now and then a single one out of order."""
    tasks = setup.tasks
    kind = draw(st.sampled_from(["join", "join", "micro", "tasks", "tasks", "care", "stray"]))
    if kind == "care":
        return draw(st.lists(care(setup, number), min_size=1, max_size=2, unique_by=type))
    if kind == "stray":
        return [
            draw(
                st.one_of(
                    joins(tasks, False),
                    task_calls(tasks),
                    combines(tasks),
                    st.just(Step()),
                    st.just(Discard()),
                    st.builds(ZeroGrad, st.booleans()),
                    st.builds(Auxiliary, batches(0, 7, poison=False)),
                    st.builds(Clip, st.sampled_from([0.5, 100.0])),
                )
            )
        ]
    calls: list[Call] = []
    if kind == "join":
        calls = [draw(joins(tasks, True))]
    elif kind == "micro":
        parts = draw(st.integers(1, 2))
        calls = [draw(joins(tasks, False)) for _ in range(parts)] + [draw(joins(tasks, True))]
    else:
        calls = [*draw(st.lists(task_calls(tasks), min_size=1, max_size=5)), draw(combines(tasks))]
    if draw(st.sampled_from([False, False, True])):
        calls.append(Clip(draw(st.sampled_from([0.5, 100.0]))))
    calls.append(Step())
    if draw(st.sampled_from([True, True, True, False])):
        calls.append(ZeroGrad(draw(st.sampled_from([True, True, False]))))
    return calls


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A setup, and up to eight phrases of calls."""
    setup = draw(setups())
    calls: list[Call] = []
    for number in range(draw(st.integers(1, 8))):
        calls += draw(phrases(setup, number))
    return Program(setup, tuple(calls))
