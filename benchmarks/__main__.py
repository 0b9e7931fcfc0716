"""All questions: `make bench`, or `make bench NAME=path`."""

import sys

from benchmarks.burst import BURST
from benchmarks.handover import HANDOVER
from benchmarks.harness.figures import Question
from benchmarks.harness.run import run_questions
from benchmarks.receive import RECEIVE

QUESTIONS: tuple[Question, ...] = (RECEIVE, BURST, HANDOVER)

if __name__ == "__main__":
    sys.exit(run_questions(QUESTIONS))
