"""From a typed function to the parser of a command: parameters are the options, the docstring is the help."""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentError
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser

Commands = Mapping[str, Callable[..., int | None]]
"""Functions by the words that call them; a function may return an exit status."""

SHORT = {"out": "-o"}
"""Parameters that also have a short option."""


class UsageError(Exception):
    """A wrong call, found before anything heavy is loaded."""

    exit_status = 2


class _Formatter(ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not those that say nothing."""

    def _get_help_string(self, action: Action) -> str | None:
        says_nothing = action.default in (None, False) or not action.option_strings
        return action.help if says_nothing else super()._get_help_string(action)


def build_parser(name: str, command: Callable[..., Any]) -> ArgumentParser:
    """Make the parser of one command from its signature and docstring.

    Parameters before ``*`` are positional, ``*name`` takes any number of them, the others are options;
    a bool that is False by default is a plain flag.
    """
    text = docstring_parser.parse(command.__doc__ or "")
    helps = {entry.arg_name.lstrip("*"): entry.description for entry in text.params}
    parser = ArgumentParser(
        prog=f"steadyseg {name}",
        description=text.description,
        formatter_class=_Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(command)
    for parameter in inspect.signature(command).parameters.values():
        options: dict[str, Any] = {"help": helps[parameter.name], "type": hints[parameter.name]}
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            many: dict[str, Any] = {"nargs": "*"} if parameter.kind is inspect.Parameter.VAR_POSITIONAL else {}
            parser.add_argument(parameter.name, metavar=parameter.name.upper(), **many, **options)
            continue
        if parameter.default is False:
            options = {"help": helps[parameter.name], "action": "store_true"}
        elif parameter.default is inspect.Parameter.empty:
            options["required"] = True
        else:
            options["default"] = parameter.default
        flags = [SHORT[parameter.name]] if parameter.name in SHORT else []
        parser.add_argument(*flags, f"--{parameter.name.replace('_', '-')}", dest=parameter.name, **options)
    return parser


def parse(name: str, command: Callable[..., Any], args: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Parse the words after a command's name; positional words and options may come in any order.

    Args:
        name: of the command, for messages.
        command: its function.
        args: the words.

    Returns:
        Positional and keyword arguments for `command`.

    Raises:
        UsageError: saying what is wrong, with the nearest known option.
    """
    parser = build_parser(name, command)
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    words, options, rest = [], [], iter(args)
    for word in rest:
        flag = word.partition("=")[0]
        if not word.startswith("-") or word == "-":
            words.append(word)
        elif flag not in flags:
            raise UsageError(f"{name}: unknown option '{flag}'{near(flag, flags)}; see steadyseg {name} --help")
        else:
            options.append(word)
            if "=" not in word and flags[flag].nargs != 0:
                following = next(rest, None)
                if following is None:
                    raise UsageError(f"{name}: {flag} needs a value; see steadyseg {name} --help")
                options.append(following)
    try:
        values = vars(parser.parse_args([*options, *words]))
    except ArgumentError as exc:
        raise UsageError(f"{name}: {_explain(str(exc))}; see steadyseg {name} --help") from None
    positional: list[Any] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            positional.extend(values.pop(parameter.name))
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            positional.append(values.pop(parameter.name))
    return positional, values


def _explain(message: str) -> str:
    """Put an argparse or jsonargparse message into one line of plain words."""
    missing = re.fullmatch(r"the following arguments are required: (\w+).*", message)  # the first is enough
    if missing:
        return f"{missing[1].upper()} is missing" if missing[1] not in SHORT else f"{SHORT[missing[1]]} is missing"
    found = re.match(r'Parser key "(\w+)":', message)
    value = re.search(r"(?:Got value|Given value): (.*)$", message)
    if not found or not value:
        return " ".join(message.split())
    flag = "--" + found[1].replace("_", "-")
    choices = re.search(r"Literal\[(.*?)\]", message)
    if choices:
        known = [choice.strip(" '\"") for choice in choices[1].split(",")]
        return f"{flag} is '{value[1]}'; expected one of {', '.join(known)}{near(value[1], known)}"
    kinds = [kind for kind in re.findall(r"<class '(\w+)'>", message) if kind not in ("NoneType", value[1])]
    wanted = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    return f"{flag} is '{value[1]}'; expected {wanted.get(kinds[0], kinds[0]) if kinds else 'something else'}"


def near(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def usage(about: str, commands: Commands) -> str:
    """Return the text of ``steadyseg --help``: what the program is about, and all commands."""
    lines = {
        name: docstring_parser.parse(command.__doc__ or "").short_description for name, command in commands.items()
    }
    rows = "\n".join(f"  {name:<14}{line}" for name, line in lines.items())
    return (
        "usage: steadyseg COMMAND [options]\n\n"
        f"{about}\n\n"
        f"commands:\n{rows}\n\n"
        "options:\n  -h, --help    show this text\n  --version     show the version\n\n"
        "steadyseg COMMAND --help shows the options of a command."
    )


def select(commands: Commands, argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Split the words of a call into the command's name and what follows it.

    Raises:
        UsageError: if no command begins the call, with the nearest known one.
    """
    for words in (2, 1):
        name = " ".join(argv[:words])
        if len(argv) >= words and name in commands:
            return name, argv[words:]
    given = next((" ".join(argv[:words]) for words in (2, 1) if argv[0] in {c.split()[0] for c in commands}), argv[0])
    raise UsageError(f"unknown command '{given}'{near(given, commands)}; known are {', '.join(commands)}")
