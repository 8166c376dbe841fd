"""What every command of the project shares: how it ends on bad input, and how it treats the machine's memory."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from .errors import InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOENT,
}


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
        if error.errno not in DISK_ERRORS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(error, f"cannot read or write: {error.strerror}{where}")


def _fail(error: Exception, message: str) -> None:
    if os.environ.get("VIDGEN_TRACEBACK"):
        raise error
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks: otherwise every big tensor operation pays for fresh pages from the kernel."""
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 1 << 27)


def peak_memory_mib() -> int | None:
    """The most main memory that this process ever held."""
    if sys.platform == "win32":
        return None
    import resource

    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes // 2**20
