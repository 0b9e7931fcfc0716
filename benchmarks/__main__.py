"""All questions: `make bench`, or `make bench NAME=path`."""

import sys

from benchmarks.admission import ADMISSION
from benchmarks.archive import ARCHIVE
from benchmarks.burst import BURST
from benchmarks.crash import CRASH
from benchmarks.enqueue import ENQUEUE
from benchmarks.handover import HANDOVER
from benchmarks.harness.figures import Question
from benchmarks.harness.run import run_questions
from benchmarks.path import PATH
from benchmarks.receive import RECEIVE
from benchmarks.sweep import SWEEP
from benchmarks.waiting import WAITING

QUESTIONS: tuple[Question, ...] = (
    PATH,
    RECEIVE,
    BURST,
    HANDOVER,
    WAITING,
    SWEEP,
    ADMISSION,
    ENQUEUE,
    ARCHIVE,
    CRASH,
)

if __name__ == "__main__":
    sys.exit(run_questions(QUESTIONS))
