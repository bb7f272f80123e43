"""Child processes that may die: forked, so that a death costs milliseconds."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

KILLED = 9


def in_child(action: Callable[[], object]) -> int:
    """Run in a forked child and return its exit code; an exception is printed and gives 1."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
