"""Command-line arguments made of the options' own declarations, and the types of the others."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import Any, Final, TypeVar, cast

from gpupipe.errors import OptionError
from gpupipe.options import EngineOptions, ModelOptions, Option, OutputOptions, SpeechOptions, declared, options_of

T = TypeVar("T")

TITLES: Final = {
    SpeechOptions: "the speech",
    OutputOptions: "the output",
    ModelOptions: "the model",
    EngineOptions: "the machine",
}
"""What the help calls each group of options, in its order."""


class Help(argparse.HelpFormatter):
    """Adds the default of an option that takes a value and has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.nargs == 0 or action.default is None:
            return action.help
        return f"{action.help} [default: %(default)s]"


def add_options(parser: argparse.ArgumentParser, keywords: type, *, but: Collection[str] = ()) -> None:
    """Add the options that a TypedDict of keywords names, `but` for some, a group of arguments for each dataclass."""
    wanted = options_of(keywords).keys() - set(but)
    for group, title in TITLES.items():
        mine = [option for name, option in declared(group).items() if name in wanted]
        arguments = parser.add_argument_group(title) if mine else None
        for option in mine:
            assert arguments is not None
            _add(arguments, option)


def add_group(parser: argparse.ArgumentParser, group: type, title: str) -> None:
    """Add the options of a dataclass that is no group of keywords."""
    arguments = parser.add_argument_group(title)
    for option in declared(group).values():
        _add(arguments, option)


def group_given(options: argparse.Namespace, group: Callable[..., T]) -> T:
    """What `add_group` added, as it was given."""
    return group(**{name: getattr(options, name) for name in declared(cast(type, group))})


def given(options: argparse.Namespace, keywords: type, *, but: Collection[str] = ()) -> dict[str, Any]:
    """The keywords that `add_options` added, as they were given."""
    return {name: getattr(options, name) for name in options_of(keywords) if name not in but}


def _add(arguments: argparse._ArgumentGroup, option: Option) -> None:
    settings: dict[str, Any] = {"dest": option.name, "default": option.default, "help": option.help}
    if option.kind == "switch":
        settings["action"] = "store_false" if option.default else "store_true"
    else:
        settings["type"] = reader(option)
        if option.choices:
            settings["choices"] = option.choices
        else:
            settings["metavar"] = option.metavar
        if option.bare is not None:
            settings |= {"nargs": "?", "const": option.bare}
        if option.default is None:
            settings["help"] += f" [default: {option.default_text}]"
    arguments.add_argument(option.flag, **settings)


def reader(option: Option) -> Callable[[str], Any]:
    """The type of an argument: what reads an option."""

    def read(text: str) -> Any:
        # What is none of the choices is told by argparse.
        if option.choices:
            return text
        try:
            return option.read(text)
        except OptionError as error:
            raise argparse.ArgumentTypeError(error.on_command_line()) from error

    return read


def number(least: int) -> Callable[[str], Any]:
    """The type of a whole number of at least `least`."""
    return reader(Option("number", "", least=least))


def size(text: str) -> tuple[int, int]:
    """The type of a picture's width and height, such as 1280x720."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1280x720")
    return int(width), int(height)
