# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every way in which an option can be wrong is refused with its name, value and remedy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
import json
from typing import Any

import pytest

from feat_ros.config import Config, from_dict, option, parse_options, to_dict
from feat_ros.errors import ConfigError, FeatRosError


@dataclass(frozen=True)
class Solver(Config):
    """Options inside options."""

    max_error_px: float = option(4.0, 'Largest error of an inlier, pixels.', minimum=0.1)
    method: str = option('lm', 'How to minimise.', choices=('lm', 'gn'))


@dataclass(frozen=True)
class Options(Config):
    """One option of each kind."""

    count: int = option(10, 'How many.', minimum=1, maximum=100)
    ratio: float = option(0.5, 'Which part.', minimum=0, maximum=1)
    verbose: bool = option(False, 'Whether to say more.')
    name: str = option('a', 'What to call it.')
    limit_s: float | None = option(None, 'Longest time, seconds.', minimum=0)
    threads: int | str = option('auto', 'Number of threads.')
    offset: tuple[int, ...] = option((0, 0), 'Shift, pixels.')
    solver: Solver = option(Solver, 'The solver.')
    folders: list[str] = option(list, 'Where to look.')


def test_defaults_are_those_of_the_dataclass() -> None:
    assert from_dict(Options, {}) == Options() == parse_options(Options, [])
    assert Options().solver == Solver(4.0, 'lm')
    metadata = dataclasses.fields(Options)[0].metadata
    assert metadata == {'description': 'How many.', 'minimum': 1, 'maximum': 100, 'choices': None}


def test_plain_values_and_back() -> None:
    data = {
        'count': 3,
        'ratio': 1.0,
        'verbose': True,
        'name': 'b',
        'limit_s': 2.5,
        'threads': 2,
        'offset': (1, 2),
        'solver': {'max_error_px': 2.0, 'method': 'gn'},
        'folders': ['a'],
    }
    config = from_dict(Options, data)
    assert config == Options(3, 1.0, True, 'b', 2.5, 2, (1, 2), Solver(2.0, 'gn'), ['a'])
    assert to_dict(config) == data


def test_json_and_back() -> None:
    config = Solver(max_error_px=2.0, method='gn')
    assert from_dict(Solver, json.loads(json.dumps(to_dict(config)))) == config


def test_an_integer_becomes_the_float_that_is_asked_for() -> None:
    config = Options(ratio=1, limit_s=3)
    assert (type(config.ratio), type(config.limit_s)) == (float, float)
    assert (config.ratio, config.limit_s) == (1.0, 3.0)


def test_ranges_include_their_ends() -> None:
    for values in ({'count': 1, 'ratio': 0.0, 'limit_s': 0.0}, {'count': 100, 'ratio': 1.0}):
        config = to_dict(from_dict(Options, values))
        assert {name: config[name] for name in values} == values


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().count = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'count': 1.0}, r'Options\.count is 1\.0: it must be int$'),
        ({'count': True}, r'Options\.count is True: it must be int$'),
        ({'count': '3'}, r"Options\.count is '3': it must be int$"),
        ({'count': None}, r'Options\.count is None: it must be int$'),
        ({'count': 0}, r'Options\.count is 0: it must be at least 1$'),
        ({'count': 101}, r'Options\.count is 101: it must be at most 100$'),
        ({'ratio': '0.5'}, r"Options\.ratio is '0\.5': it must be float$"),
        ({'ratio': True}, r'Options\.ratio is True: it must be float$'),
        ({'ratio': -0.1}, r'Options\.ratio is -0\.1: it must be at least 0$'),
        ({'ratio': 2}, r'Options\.ratio is 2\.0: it must be at most 1$'),
        ({'ratio': float('nan')}, r'Options\.ratio is nan: it must be a finite number$'),
        ({'limit_s': float('inf')}, r'Options\.limit_s is inf: it must be a finite number$'),
        ({'limit_s': -1}, r'Options\.limit_s is -1\.0: it must be at least 0$'),
        ({'limit_s': 'x'}, r"Options\.limit_s is 'x': it must be float or NoneType$"),
        ({'threads': 1.5}, r'Options\.threads is 1\.5: it must be int or str$'),
        ({'threads': False}, r'Options\.threads is False: it must be int or str$'),
        ({'verbose': 1}, r'Options\.verbose is 1: it must be bool$'),
        ({'name': 3}, r'Options\.name is 3: it must be str$'),
        ({'offset': 'xy'}, r"Options\.offset is 'xy': it must be tuple"),
        ({'solver': 3}, r'Options\.solver is 3: it must be Solver$'),
        ({'solver': {'method': 'sgd'}}, r"Solver\.method is 'sgd': choose one of lm, gn$"),
        ({'solver': {'max_error_px': 0}}, r'Solver\.max_error_px is 0\.0: it must be at least'),
        ({'solver': {'tol': 1}}, r"Solver has no option 'tol': it has max_error_px, method$"),
        (
            {'ratoi': 1, 'count': 3},
            r"Options has no option 'ratoi': it has count, ratio, verbose, name, limit_s, "
            r'threads, offset, solver, folders$',
        ),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Options, values)
    assert issubclass(ConfigError, FeatRosError)


def test_the_constructor_is_as_strict_as_the_reader() -> None:
    with pytest.raises(ConfigError, match=r'Options\.count is 0: it must be at least 1'):
        Options(count=0)
    with pytest.raises(ConfigError, match=r'Options\.count is 0: it must be at least 1'):
        dataclasses.replace(Options(), count=0)


@pytest.mark.parametrize('data', [None, 3, 'count=3', ['count']])
def test_only_a_table_of_options_makes_a_config(data: Any) -> None:
    with pytest.raises(ConfigError, match=r'Options is .*: it must be a table of options$'):
        from_dict(Options, data)


@pytest.mark.parametrize(
    ('word', 'expected'),
    [
        ('count=7', Options(count=7)),
        ('ratio=0.25', Options(ratio=0.25)),
        ('ratio=1', Options(ratio=1.0)),
        ('ratio=1e-3', Options(ratio=0.001)),
        ('verbose=true', Options(verbose=True)),
        ('verbose=False', Options(verbose=False)),
        ('name=a=b', Options(name='a=b')),
        ('name=7', Options(name='7')),
        ('name=none', Options(name='none')),
        ('name=', Options(name='')),
        ('limit_s=none', Options(limit_s=None)),
        ('limit_s=2', Options(limit_s=2.0)),
        ('threads=4', Options(threads=4)),
        ('threads=auto', Options(threads='auto')),
        ('folders=a,b/c', Options(folders=['a', 'b/c'])),
        ('folders=7', Options(folders=['7'])),
        ('folders=', Options(folders=[])),
    ],
)
def test_words_of_a_command_line(word: str, expected: Options) -> None:
    assert parse_options(Options, [word]) == expected


def test_several_words() -> None:
    assert parse_options(Options, ['count=7', 'ratio=0.25']) == Options(count=7, ratio=0.25)


@pytest.mark.parametrize(
    ('word', 'message'),
    [
        ('count', "option 'count' has no value: write it as name=value"),
        ('cuont=3', "Options has no option 'cuont': it has count, ratio"),
        ('count=3.5', "count is '3.5': it must be int"),
        ('count=', "count is '': it must be int"),
        ('count=500', 'count is 500: it must be at most 100'),
        ('ratio=half', "ratio is 'half': it must be float"),
        ('ratio=nan', 'ratio is nan: it must be a finite number'),
        ('verbose=1', "verbose is '1': it must be bool"),
        ('solver=lm', "solver is 'lm': it must be Solver"),
    ],
)
def test_wrong_words_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_options(Options, [word])
    assert message in str(error.value)
