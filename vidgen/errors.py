"""The one error that users are meant to see."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message names what was wrong and what to do.

    Command-line entry points print it in one or two lines and exit with code 2 (see ``vidgen.cli``).
    """
