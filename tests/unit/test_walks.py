"""Samples of what a walk reads."""

from worker.jobs.walks import offer


def test_sample_has_its_size_and_reaches_every_part_of_the_table() -> None:
    taken: set[int] = set()
    for _ in range(300):
        sample: list[int] = []
        for number in range(6):
            offer(sample, number, offered=number + 1, size=2)
        assert len(set(sample)) == 2
        taken |= set(sample)
    assert taken == set(range(6))
