"""Random programs of public calls: the library does what the float64 reference says.

``pytest tests/gradsurgery/programs`` runs some hundred, the same ones every time, and with
``--hypothesis-profile=long`` thousands of new ones.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.gradsurgery.programs.program import (
    AddGroup,
    Batch,
    Call,
    Combine,
    Join,
    Program,
    Reload,
    Setup,
    Step,
    Task,
    Weight,
    ZeroGrad,
    programs,
)
from tests.gradsurgery.programs.rules import RULES
from tests.gradsurgery.programs.run import run
from tests.methods import every_method

STEP = (Step(), ZeroGrad())


def weight(name: str, users: tuple[int, ...] = (0, 1)) -> Weight:
    return Weight(name, (4, 3), "float64", "dense", users)


def setup(method: str, bases: int = 1, grouping: str = "layer") -> Setup:
    """Two tasks, a parameter in each base; bases and layers are one."""
    groups = tuple(((weight(f"{base}.w{base}"),),) for base in range(bases))
    return Setup(2, groups, ("sgd",) * bases, method, grouping, ())


def joined(seed: int, values: tuple[float, float] = (1.0, 2.0), **options: object) -> Join:
    batches = tuple(Batch(k, seed, value) for k, value in enumerate(values))
    return Join(batches, **options)  # type: ignore[arg-type]


@settings(max_examples=20 * settings.default.max_examples)
@given(programs())
def test_a_program_does_what_the_docs_promise(program: Program) -> None:
    run(program)


@every_method
def test_training_is_compared_for_every_method(name: str) -> None:
    """What the random programs do is no empty comparison: nothing is left open here."""
    assert name in RULES, f"rules.py has no {name!r}: write down what its page promises"
    calls: list[Call] = [call for seed in range(4) for call in (joined(seed), *STEP)]
    compared = run(Program(setup(name), tuple(calls))).reference
    assert compared.compared == 4
    assert compared.open == 0


@pytest.mark.parametrize("method", ["geometric", "gradnorm", "throwaway dwa"])
def test_a_refused_combine_leaves_no_losses_behind(method: str) -> None:
    """Nothing was captured, so nothing was known: the next step's losses are its own."""
    tasks = Task(Batch(0, 1, 1.0)), Task(Batch(1, 2, 3.0))
    run(Program(setup(method), (Combine(), *tasks, Combine(), *STEP)))


@pytest.mark.parametrize("statistics", [True, False])
def test_segments_keep_their_names_in_a_fresh_optimizer(statistics: bool) -> None:
    """A group that was added to the first base comes before the second's, once built anew."""
    calls = (
        *(joined(1), *STEP),
        AddGroup(weight("2.w100"), first=True),
        *(joined(2), *STEP),
        Reload(statistics),
        *(joined(3), *STEP),
    )
    run(Program(setup("gradvac", bases=2), calls))
