"""The ``vidgen`` command: one name for the project's scripts and modules, which it starts as they are.

Nothing is imported before it is known which of them is wanted; ``python -m vidgen.console`` is the same command.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from . import __version__, cli
from .errors import InputError

GROUPS = {
    "make clips": {
        "sample": ("sample.py", "a prompt in, an mp4 with sound out"),
        "app": ("vidgen.app", "the same on a page in the browser"),
    },
    "train": {
        "prepare": ("vidgen.data.prepare", "clips of your own into training data"),
        "train": ("train.py", "one stage of the model, from scratch or onward"),
    },
    "measure": {
        "eval": ("eval.run", "score a model"),
        "inspect": ("vidgen.inspect", "what made a clip, and the command that makes it again"),
    },
}
COMMANDS = {name: place for group in GROUPS.values() for name, (place, _) in group.items()}
READ_FIRST = {"train": "vidgen.train_options", "eval": "eval.options"}
"""Where options are read of commands that take seconds to import: help and mistakes come at once."""
SHELLS = ("bash", "zsh", "tcsh")
EXAMPLES = """examples:
  vidgen sample --prompt "a small red metal ball drops onto a wooden floor" --output ball.mp4
  vidgen sample --model Lightricks/LTX-Video --prompt "waves on a beach" --add-audio
  vidgen inspect ball.mp4
  vidgen train vae3d --config tabletop-cpu --data clips --output out/vae3d
  accelerate launch -m vidgen.console train dit …    # on several GPUs
  vidgen eval --model weights --output out
  vidgen COMMAND --help

exit codes: 0 done, 2 something given cannot be used (one line says what), 130 interrupted"""


def main() -> NoReturn:
    """Run the command that ``sys.argv`` names, with the exit codes of ``vidgen.cli.run``."""
    cli.run(_main)
    sys.exit(0)


def _main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
    elif arguments[0] in ("-V", "--version"):
        print(f"vidgen {__version__}")
    elif arguments[0] == "completion":
        if len(arguments) != 2 or arguments[1] not in SHELLS:
            raise InputError(f"say for which shell: vidgen completion {'|'.join(SHELLS)}")
        print(completion(arguments[1]))
    elif arguments[0] in COMMANDS:
        sys.argv = [f"vidgen {arguments[0]}", *arguments[1:]]
        if arguments[0] in READ_FIRST:
            _module(arguments[0], READ_FIRST[arguments[0]]).parse_arguments()
        entry_point(arguments[0])()
    else:
        raise InputError(f"there is no command {arguments[0]!r}: {', '.join(COMMANDS)} (see vidgen --help)")


def usage() -> str:
    """What ``vidgen --help`` prints."""
    lines = ["usage: vidgen COMMAND …", "", "Text to video with the sound that belongs to it.", ""]
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<10}{help}" for name, (_, help) in commands.items()), ""]
    shells = "|".join(SHELLS)
    lines += ["other:", f"  {'completion':<10} {shells}: a script for the shell's completion", ""]
    return "\n".join([*lines, EXAMPLES])


def entry_point(command: str) -> Callable[[], None]:
    """The ``main`` of a command.

    Raises:
        InputError: this installation does not have it.
    """
    place = COMMANDS[command]
    return (_script(place) if place.endswith(".py") else _module(command, place)).main


def _module(command: str, place: str) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise
        raise InputError(f"vidgen {command} is not part of this installation") from error


def completion(shell: str) -> str:
    """A completion script for one of ``SHELLS``, of all commands' flags.

    Raises:
        InputError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise InputError('completion needs shtab: pip install "vidgen[completion]"') from error
    whole = argparse.ArgumentParser(prog="vidgen")
    commands = whole.add_subparsers()
    for name, parser in _parsers():
        for action in parser._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        help = next(group[name][1] for group in GROUPS.values() if name in group)
        commands.add_parser(name, parents=[parser], add_help=False, help=help)
    commands.add_parser("completion", help="a script for the shell's completion").add_argument("shell", choices=SHELLS)
    return shtab.complete(whole, shell)


class _Captured(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def _parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command's parser, as its ``main`` builds it: stopped where it would parse. Commands without are left out."""
    from unittest.mock import patch

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _Captured(parser)

    for command in COMMANDS:
        try:
            with patch.object(argparse.ArgumentParser, "parse_args", stop):
                entry_point(command)()
        except _Captured as captured:
            yield command, captured.parser
        except (InputError, ImportError) as error:
            print(f"left out: {command} ({error})", file=sys.stderr)


def _script(name: str) -> Any:
    """A script as a module: from inside the package in a wheel, from beside it in a checkout."""
    package = Path(__file__).resolve().parent
    path = next((path for path in (package / "scripts" / name, package.parent / name) if path.is_file()), None)
    if path is None:
        raise InputError(f"{name} is missing from this installation")
    module_name = f"vidgen.scripts.{path.stem}" if path.parent.name == "scripts" else path.stem
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
