"""How verbs are made: their options are the fields of dataclasses, which travel as one thing."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup

from bolus.cli.options import class_names, names, numbers, whole_numbers
from bolus.cli.speaking import Everywhere
from bolus.errors import UsageError
from bolus.evaluation.settings import options_of


def grouped(
    command: Callable[..., None],
    further: Mapping[str, Any] | None = None,
    *,
    without: Sequence[str] = (),
    more: Sequence[inspect.Parameter] = (),
) -> Callable[..., None]:
    """Let a command take dataclasses: each of their fields is an option of the command. It also gets `Everywhere`.

    Args:
        command: whose parameters are arguments, options, and dataclasses, of annotated fields or of settings
            (`bolus.evaluation.settings.option`).
        further: name -> dataclass, of keywords that the command takes without naming them.
        without: options that the command does not have.
        more: further options, likewise.

    Returns:
        What typer makes a command of; it puts the dataclasses together and calls `command`.
    """
    further = further or {}
    signature, hints = inspect.signature(command), {**get_type_hints(command, include_extras=True), **further}
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            parameters += parameters_of(groups[name])
        elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
    for kind in further.values():
        parameters += [each for each in parameters_of(kind) if each.name not in without]
    parameters += [*more, *parameters_of(Everywhere)]

    def call(**values: Any) -> None:
        made(Everywhere, values).apply()
        for name, kind in groups.items():
            values[name] = made(kind, values)
        command(**values)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
    return call


def parameters_of(kind: Any) -> list[inspect.Parameter]:
    """The options of a dataclass, of annotated fields or of settings."""
    settings = options_of(kind)
    if not settings:
        own = get_type_hints(kind, include_extras=True)
        return [_parameter(each.name, own[each.name], _default(each)) for each in fields(kind)]
    found = []
    for name, (holder, each) in settings.items():
        at, more, default = _typed(_hint(kind, holder, name), each)
        label = each.metadata["name"]
        flags = [label] if at is bool else label.split("/")  # --yes/--no is one pair of flags
        option = typer.Option(
            *(flags if label else [f"--{name.replace('_', '-')}"]),
            help=f"{each.metadata['help']}{more}",
            metavar=each.metadata["metavar"] or None,
        )
        found.append(_parameter(name, Annotated[at, option], default))
    return found


def made(kind: Any, values: dict[str, Any]) -> Any:
    """The dataclass, of the values of its options, which are taken out of `values`."""
    settings = options_of(kind)
    if not settings:
        return kind(**{each.name: values.pop(each.name) for each in fields(kind)})
    given: dict[str, dict[str, Any]] = {}
    for name, (holder, each) in settings.items():
        value = _read(_hint(kind, holder, name), each, values.pop(name, None))
        if value is not MISSING:
            given.setdefault(holder, {})[name] = value
    nested: dict[str, Any] = {each.name: each.default_factory for each in fields(kind)}
    whole = {holder: nested[holder](**own) for holder, own in given.items() if holder}
    return kind(**given.get("", {}), **whole)


def with_help(parameter: inspect.Parameter, before: str) -> inspect.Parameter:
    """The option with more help, before its own."""
    at, option = get_args(parameter.annotation)
    option = copy.copy(option)
    option.help = f"{before}{option.help}"
    return parameter.replace(annotation=Annotated[at, option])


def given_options(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a dataclass of settings that differ from their defaults, as it takes them."""
    found = {}
    for name, (holder, each) in options_of(kind).items():
        value = _read(_hint(kind, holder, name), each, values.get(name))
        if value is not MISSING and value != _default(each):
            found[name] = value
    return found


class Verbs(TyperGroup):
    """A group of verbs; whoever gives one an option of another is told which has it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As of typer; an option that only other verbs have is a UsageError."""
        found = super().resolve_command(ctx, args)
        name, command, rest = found
        options = {each: [*_options_of(other)] for each, other in self.commands.items()}
        for word in rest:
            option = word.partition("=")[0]
            others = [each for each, known in options.items() if option in known]
            if option.startswith("--") and others and not isinstance(command, TyperGroup) and name not in others:
                raise UsageError(f"{ctx.command_path} {name} has no {option}; {_having(ctx, others)} {option}")
        return found


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _default(each: Field[Any]) -> Any:
    made_by: Any = each.default_factory
    return each.default if made_by is MISSING else made_by()


def _hint(kind: Any, holder: str, name: str) -> Any:
    """The type of an option, without `None`."""
    if holder:
        kind = next(each.default_factory for each in fields(kind) if each.name == holder)
    hint = get_type_hints(kind)[name]
    if get_origin(hint) in (Union, types.UnionType):
        parts = [each for each in get_args(hint) if each is not type(None)]
        hint = parts[-1]  # a path, where a name is taken as well
    return hint


def _typed(hint: Any, each: Field[Any]) -> tuple[Any, str, Any]:
    """What typer reads the option as, what is added to its help, and its default there."""
    origin, default = get_origin(hint), _default(each)
    if origin is Sequence:
        said = f" (default: {','.join(f'{part:g}' if isinstance(part, float) else str(part) for part in default)})"
        return str | None, said if default and "default" not in each.metadata["help"] else "", None
    if origin is Mapping:
        return list[str], "", []
    if hint is bool:
        return bool, "", default
    at = hint if isinstance(hint, type) else str
    return (at | None if default is None else at), "", default


def _read(hint: Any, each: Field[Any], value: Any) -> Any:
    """The value of an option as the dataclass takes it; MISSING where it was not given."""
    origin, option = get_origin(hint), each.metadata["name"] or f"--{each.name.replace('_', '-')}"
    if value is None or (origin is Mapping and not value):
        return MISSING
    if origin is Mapping:
        return class_names(value)
    if origin is Sequence:
        item = get_args(hint)[0]
        if item is int:
            return tuple(whole_numbers(value, option))
        return tuple(numbers(value, option) if item is float else names(value) or ())
    return value


def _options_of(command: Any) -> Iterator[str]:
    """Every spelling of the options of a command."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)


def _having(ctx: Any, verbs: list[str]) -> str:
    """Which verbs have something."""
    listed = " and ".join(part for part in (", ".join(verbs[:-1]), verbs[-1]) if part)
    return f"{ctx.command_path} {listed} {'has' if len(verbs) == 1 else 'have'}"
