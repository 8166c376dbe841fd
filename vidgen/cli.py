"""How every command of the project ends: bad input is one clear line and exit code 2, never a traceback."""

import errno
import os
import sys
from collections.abc import Callable

from .errors import InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EPERM}


def run(main: Callable[[], None]) -> None:
    """Call ``main`` and exit: 0 when it returns, 2 on bad input or an unusable disk, 130 on Ctrl-C.

    Set ``VIDGEN_TRACEBACK=1`` to see the traceback behind an error message.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except InputError as error:
        _fail(error, str(error))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(error, f"cannot read or write: {error.strerror}{where}")


def _fail(error: Exception, message: str) -> None:
    if os.environ.get("VIDGEN_TRACEBACK"):
        raise error
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
