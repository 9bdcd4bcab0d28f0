# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Strict configuration: frozen dataclasses are the one table of defaults.

Every field is made with :func:`option`, so that description, range and choices stand beside the
default; command lines, ROS parameters and manifests are derived from them.
"""

from __future__ import annotations

from collections.abc import Mapping
import copy
import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from feat_ros.errors import ConfigError

T = TypeVar('T')


def option(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """Declare a field of a configuration dataclass.

    :param default: the value where nothing is said.
    :param description: one sentence, with the unit.
    :param minimum: smallest allowed value, inclusive.
    :param maximum: largest allowed value, inclusive.
    :param choices: the only allowed values.
    """
    metadata = {
        'description': description,
        'minimum': minimum,
        'maximum': maximum,
        'choices': choices,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Config:
    """Base of the configuration dataclasses: checks every value when one is made."""

    def __post_init__(self) -> None:
        """Check types and ranges.

        :raises ConfigError: names the field, the value and what is allowed.
        """
        cls = type(self)
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(typing.cast(Any, cls)):
            value = getattr(self, field.name)
            checked = _check_type(f'{cls.__name__}.{field.name}', value, hints[field.name])
            if checked is not value:
                object.__setattr__(self, field.name, checked)
            _check_range(f'{cls.__name__}.{field.name}', checked, field.metadata)


def _check_type(name: str, value: Any, hint: Any) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in allowed:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is type(None):
            if value is None:
                return value
            continue
        if isinstance(value, bool) and kind is not bool:
            continue
        if isinstance(value, typing.get_origin(kind) or kind):
            return value
    wanted = ' or '.join(getattr(kind, '__name__', str(kind)) for kind in allowed)
    raise ConfigError(f'{name} is {value!r}: it must be {wanted}')


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if value is None:
        return
    choices = metadata.get('choices')
    if choices is not None and value not in choices:
        raise ConfigError(f'{name} is {value!r}: choose one of {", ".join(map(str, choices))}')
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f'{name} is {value!r}: it must be a finite number')
    minimum, maximum = metadata.get('minimum'), metadata.get('maximum')
    if minimum is not None and value < minimum:
        raise ConfigError(f'{name} is {value!r}: it must be at least {minimum}')
    if maximum is not None and value > maximum:
        raise ConfigError(f'{name} is {value!r}: it must be at most {maximum}')


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Make a configuration from plain values (JSON, a manifest, ROS parameters).

    Nested dataclasses are made from nested mappings.

    :raises ConfigError: an unknown key (the known ones are listed), a wrong type or range.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f'{cls.__name__} is {data!r}: it must be a table of options')
    known = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(
            f'{cls.__name__} has no option {unknown[0]!r}: it has {", ".join(known)}'
        )
    hints = typing.get_type_hints(cls)
    values = {
        name: from_dict(hints[name], value)
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping)
        else value
        for name, value in data.items()
    }
    return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values; the inverse of :func:`from_dict`."""
    return dataclasses.asdict(config)


def parse_options(
    cls: type[T], pairs: typing.Iterable[str], base: Mapping[str, Any] | None = None
) -> T:
    """Make a configuration from ``name=value`` words of a command line.

    A dot reaches into a nested configuration: ``pnp.max_error_px=6``. Commas are between
    words of a list.

    :param base: plain values that the words go before, as :func:`from_dict` takes them.
    :raises ConfigError: a word without ``=``, an unknown name or an unusable value.
    """
    values: dict[str, Any] = copy.deepcopy(dict(base or {}))
    for pair in pairs:
        path, separator, text = pair.partition('=')
        if not separator:
            raise ConfigError(f'option {pair!r} has no value: write it as name=value')
        *outer, name = path.split('.')
        table, hints = values, typing.get_type_hints(cls)
        for part in outer:
            inner = hints.get(part)
            if not dataclasses.is_dataclass(inner):
                raise ConfigError(f'{cls.__name__} has no group {part!r} of options (in {pair!r})')
            table, hints = table.setdefault(part, {}), typing.get_type_hints(inner)
        table[name] = _parse_value(text, hints[name]) if name in hints else text
    return from_dict(cls, values)


def _parse_value(text: str, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and text.lower() == 'none':
        return None
    if list[str] in kinds:
        return [word for word in text.split(',') if word]
    if bool in kinds and text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def describe(options: Any, prefix: str = '') -> list[str]:
    """One line for each option with its value and range, for ``--help``; groups with dots.

    :param options: a configuration, or its class for the defaults.
    """
    lines = []
    is_class = isinstance(options, type)
    hints = typing.get_type_hints(options if is_class else type(options))
    for field in dataclasses.fields(options):
        if dataclasses.is_dataclass(hints[field.name]):
            inner = hints[field.name] if is_class else getattr(options, field.name)
            lines += describe(inner, f'{prefix}{field.name}.')
            continue
        data = field.metadata
        limits = [
            f'{word} {data[key]:g}'
            for word, key in (('from', 'minimum'), ('to', 'maximum'))
            if data[key] is not None
        ]
        limits += [f'one of {", ".join(map(str, data["choices"]))}'] if data['choices'] else []
        extent = f' ({" ".join(limits)})' if limits else ''
        value = getattr(options, field.name, field.default)
        if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        lines.append(f'{prefix}{field.name}={value}  {data["description"]}{extent}')
    return lines
