"""A run of two processes whose second one fails before step 3; started by test_lost_processes.py."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from mmssl.core import distributed
from mmssl.core.errors import MmsslError
from tests.training.toys import Match, Stream, make_learner, make_run

TIMEOUT = 2.0  # seconds


class Failing(Stream):
    how = ""

    def act(self, step: int) -> None:
        if step != 3 or distributed.rank() == 0:
            return
        if self.how == "raise":
            raise OSError("the disk under the second process is gone")
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait(2.5 * TIMEOUT)  # "stall": works on something else for too long


def main(how: str, folder: Path) -> int:
    stream = Failing()
    stream.how = how
    changes = {"distributed_timeout": TIMEOUT / 60 if how == "stall" else 10.0, "save": {"every": "2 steps"}}
    run = make_run(folder, stream=stream, learner=make_learner(Match, noise=False), **changes)
    try:
        run.train()
    except MmsslError as error:
        print(f"process {distributed.rank()}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        run.launch.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
