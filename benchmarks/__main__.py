"""All questions: `make bench`, or `make bench NAME=path`."""

import sys

from benchmarks.enqueue import ENQUEUE
from benchmarks.harness.figures import Question
from benchmarks.harness.run import run_questions
from benchmarks.sweep import SWEEP
from benchmarks.waiting import WAITING

QUESTIONS: tuple[Question, ...] = (ENQUEUE, WAITING, SWEEP)

if __name__ == "__main__":
    sys.exit(run_questions(QUESTIONS))
