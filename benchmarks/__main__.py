"""All questions: `make bench`, or `make bench NAME=path`."""

import sys

from benchmarks.archive import ARCHIVE
from benchmarks.harness.figures import Question
from benchmarks.harness.run import run_questions

QUESTIONS: tuple[Question, ...] = (ARCHIVE,)

if __name__ == "__main__":
    sys.exit(run_questions(QUESTIONS))
