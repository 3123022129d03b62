"""Run as its own process: `python -m medjax.train`, to which something happens at a chosen moment.

python disturbed_training.py WHAT MOMENT:STEP ARGUMENTS…

WHAT is a signal such as KILL or TERM, which the process sends itself, or FULL: from then on no file may grow beyond
16 KiB (RLIMIT_FSIZE; writing more gives EFBIG), room for log lines and for no checkpoint. MOMENT is one of
  logged     the line of the step has just been written
  saving     the save of the step has just been begun: nothing of it need be on disk yet
  saved      the checkpoint of the step is complete
  evaluated  the held-out loss after the step is known and logged
"""

import os
import resource
import signal
import sys

from medjax.store.checkpoints import Checkpoints
from medjax.train.__main__ import main
from medjax.train.metrics import MetricsLog

MOMENTS = {
    "logged": (MetricsLog, "write", lambda self, step, *_: step),
    "saving": (Checkpoints, "save", lambda self, step, *_: step),
    "saved": (Checkpoints, "wait", lambda self: self._pending),
    "evaluated": (MetricsLog, "held_out", lambda self, step, *_: step),
}


def disturb(what: str, moment: str) -> None:
    """Let the method that stands for the moment do the harm once it has run for its step."""
    name, _, wanted = moment.partition(":")
    owner, method, step_of = MOMENTS[name]
    original = getattr(owner, method)

    def run(self, *args, **options):
        step = step_of(self, *args)
        result = original(self, *args, **options)
        if step == int(wanted):
            if what == "FULL":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            else:
                os.kill(os.getpid(), signal.Signals[f"SIG{what}"])
        return result

    setattr(owner, method, run)


if __name__ == "__main__":
    disturb(*sys.argv[1:3])
    sys.exit(main(sys.argv[3:]))
