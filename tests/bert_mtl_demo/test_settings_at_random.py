"""Settings at random: whatever the values, a config that works or an error that names a setting.

``pytest --hypothesis-profile=long`` draws 3,000 for each test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_mtl_demo.cli import settings_of, train_parser
from bert_mtl_demo.config import Config, read_settings
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.setting_types import Choice

many = settings(
    max_examples=10 * settings().max_examples,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


T = TypeVar("T")


NAMES = [entry.name for entry in fields(Config)]
CHOICES = [
    name
    for entry in fields(Config)
    if isinstance(entry.metadata["parse"], Choice)
    for name in entry.metadata["parse"].names
]
words = st.sampled_from(
    [
        *CHOICES,
        "sst",
        "para,sts",
        "none",
        "true",
        "mood=regression:{split}",
        "",
        "1e23",
        "-0",
        "0x1",
    ]
)
numbers = st.one_of(
    st.integers(-2, 300),
    st.integers(),
    st.integers(308, 4000).map(lambda power: 10**power),
    st.floats(),
    st.floats(0, 1),
)
plain = st.none() | st.booleans() | numbers | words | st.text(max_size=8)
odd = (
    st.binary(max_size=4)
    | st.builds(object)
    | st.sets(st.integers(), max_size=2)
    | st.complex_numbers()
)
values = st.recursive(
    plain | odd,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["mood", "kind", "file", "labels", "low", "high"]), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)
tasks = st.dictionaries(
    st.sampled_from(["mood", "sst", "mean", "a b"]) | st.text(max_size=3),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["classification", "similarity", "regression"]) | values},
        optional={
            "file": st.just("{split}.csv") | values,
            "labels": values,
            "low": numbers | values,
            "high": numbers | values,
        },
    ),
    max_size=2,
)


def attempt(read: Callable[[], T]) -> tuple[T | None, str]:
    """What `read` returns and "", or None and the message of a ConfigError."""
    try:
        return read(), ""
    except ConfigError as error:
        return None, str(error)


def check_valid(config: Config) -> bool:
    """A config that exists can be saved, read, and gives the same run."""
    config.warnings()
    config.key_values()
    return Config.from_mapping(json.loads(json.dumps(config.to_dict()))) == config


def names(message: str, setting: str) -> bool:
    """Whether a message names a setting, as a key or as a flag."""
    return setting in message or setting.replace("_", "-") in message


@many
@given(name=st.sampled_from(NAMES), value=values)
def test_a_value_of_any_type_works_or_names_its_setting(name: str, value: Any) -> None:
    config, message = attempt(lambda: Config.from_mapping({name: value}))
    assert "\n" not in message
    assert names(message, name) if config is None else check_valid(config)


@many
@given(value=tasks)
def test_a_table_of_tasks_works_or_names_the_setting(value: Any) -> None:
    config, message = attempt(lambda: Config.from_mapping({"task": value}))
    assert "\n" not in message
    assert message.startswith("task") if config is None else check_valid(config)


@many
@given(chosen=st.dictionaries(st.sampled_from([*NAMES, "epoch", ""]), plain, max_size=6))
def test_settings_together_work_or_are_refused(chosen: dict[str, Any]) -> None:
    config, message = attempt(lambda: Config.from_mapping(chosen))
    assert "\n" not in message
    assert message if config is None else check_valid(config)


@many
@given(
    content=st.binary(max_size=40)
    | st.dictionaries(st.sampled_from(NAMES), plain).map(lambda v: json.dumps(v).encode())
    | st.integers(0, 10**5).map(lambda depth: b"[" * depth),
    ending=st.sampled_from(["json", "toml"]),
)
def test_any_file_is_settings_or_an_error_with_its_name(
    tmp_path: Path, content: bytes, ending: str
) -> None:
    path = tmp_path / f"settings.{ending}"
    path.write_bytes(content)
    read, message = attempt(lambda: read_settings(path))
    if read is None:
        assert str(path) in message or "Python 3.11" in message
    else:
        assert isinstance(read, dict)


@many
@given(
    name=st.sampled_from([name for name in NAMES if not isinstance(getattr(Config, name), bool)]),
    value=numbers.map(repr) | words | st.text(max_size=8),
)
def test_any_flag_is_a_setting_or_an_error_with_its_name(name: str, value: str) -> None:
    flag = f"--{name.replace('_', '-')}={value}"
    arguments = train_parser().parse_args([flag])
    config, message = attempt(lambda: Config.from_mapping(settings_of(arguments)))
    assert "\n" not in message
    assert names(message, name) if config is None else check_valid(config)
