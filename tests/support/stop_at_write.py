"""A run that stops itself in its midst: `python -m tests.support.stop_at_write SIGNAL WRITES MODULE ARGUMENTS...`.

It sends itself the signal once its journal was written to so many times, however slow or fast the machine is. Ctrl-C is heard
even where the tests were started in the background, whose children ignore it.
"""

import os
import runpy
import signal
import sys
from typing import Any

from fastervlm.eval import answers

journals: Any = answers.Journal
number, left = int(sys.argv[1]), int(sys.argv[2])
write = journals._write


def stopping(journal, *records):
    global left
    write(journal, *records)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    journals._write = stopping
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
