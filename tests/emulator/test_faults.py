import itertools

import pytest

from emulator.fault_table import POINTS
from emulator.faults import Fault, Faults, Match, WrongSettingError, parse_faults
from emulator.records import FalRequest

STATUS = {"point": "status", "kind": "stuck"}
KINDS = [(point, kind) for point, kinds in POINTS.items() for kind in kinds]


def make_request(prompt: str = "p") -> FalRequest:
    return FalRequest(origin="http://x", input={"prompt": prompt})


def fire(faults: Faults, prompts: str) -> dict[str, list[bool]]:
    """Ask for each prompt in turn; for each, which of its times something fired."""
    fired: dict[str, list[bool]] = {}
    for prompt in prompts:
        taken = faults.take("status", make_request(prompt))
        fired.setdefault(prompt, []).append(taken is not None)
    return fired


def test_parse_of_bare_fault_fills_in_defaults():
    for point, kind in KINDS:
        [fault] = parse_faults([{"point": point, "kind": kind}])
        assert (fault.rate, fault.times, fault.match) == (1.0, None, Match())
        assert set(fault.options) == set(POINTS[point][kind])
        assert parse_faults([fault.to_json()]) == (fault,)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"point": "door"}, "unknown point: 'door'; known: submit, webhook, status"),
        ({"kind": "lost"}, "unknown kind at point \"status\": 'lost'; known: status, ingress"),
        ({"kind": "hang", "second": 1}, 'unknown option "second" of status/hang; known: seconds'),
        ({"kind": "hang", "seconds": -1}, "seconds must be a number of seconds from 0 to 86400"),
        ({"kind": "hang", "seconds": float("nan")}, "seconds must be"),
        ({"kind": "status", "code": 200}, "code must be a whole number from 400 to 599, not 200"),
        ({"kind": "status", "headers": {"a": "b\nc"}}, "headers must be"),
        ({"kind": "ingress", "code": 500}, "code must be 502 or 503 or 504, not 500"),
        ({"kind": "malformed", "form": "odd"}, "form must be 'not_json' or 'truncated'"),
        ({"point": "webhook", "kind": "repeat", "count": 0}, "count must be a whole number from 1"),
        ({"point": "cdn", "kind": "truncate", "bytes": -1}, "bytes must be a whole number from 0"),
        ({"point": "cdn", "kind": "drip", "bytes_per_second": 0}, "must be a number above 0"),
        ({"point": "cdn", "kind": "wrong_length", "surplus": 0}, "a whole number but 0"),
        ({"rate": 1.5}, "rate must be a number from 0 to 1, not 1.5"),
        ({"times": 0}, "times must be null or a whole number from 1, not 0"),
        ({"match": "p"}, "match must be an object"),
        ({"match": {"job": "1"}}, 'unknown key "job" of match; known: prompt, request_id'),
        ({"match": {"prompt": 1}}, "match.prompt must be a string, not 1"),
        ({"point": "jwks", "kind": "drop", "match": {"prompt": "p"}}, 'nothing at point "jwks"'),
    ],
)
def test_parse_of_wrong_fault_names_place_and_reason(change, complaint):
    with pytest.raises(WrongSettingError) as caught:
        parse_faults([STATUS, {**STATUS, **change}])
    assert str(caught.value).startswith("faults[1]: ")
    assert complaint in str(caught.value)


def test_take_with_several_gives_first_that_still_fires():
    first, second = Fault("status", "drop", times=2), Fault("status", "stuck")
    faults = Faults([first, second])
    taken = [faults.take("status", make_request()) for _ in range(4)]
    assert taken == [first, first, second, second]
    assert [one["fired"] for one in faults.to_json()] == [2, 2]


def test_take_matches_part_of_prompt_and_request_id():
    request = make_request("a red fox")
    matches = [Match(prompt="red"), Match(request_id=request.request_id), Match()]
    others = [Match(prompt="blue"), Match(request_id="x"), Match("blue", request.request_id)]
    taken = [
        Faults([Fault("status", "stuck", match=match)]).take("status", request) is not None
        for match in (*matches, *others)
    ]
    assert taken == [True] * 3 + [False] * 3


def test_take_without_a_request_obeys_faults_for_all_only():
    faults = Faults([Fault("jwks", "drop", match=Match(prompt="p")), Fault("jwks", "hang")])
    taken = faults.take("jwks")
    assert taken is not None
    assert taken.kind == "hang"


def test_take_of_early_is_apart_from_the_other_webhook_faults():
    faults = Faults([Fault("webhook", "early"), Fault("webhook", "lost")])
    taken = [faults.take("webhook", make_request(), is_early=early) for early in (True, False)]
    assert [one.kind for one in taken if one] == ["early", "lost"]


def test_take_by_rate_fires_that_often():
    faults = Faults([Fault("status", "stuck", rate=0.25)], seed=3)
    fired = fire(faults, "p" * 1000)["p"]
    assert 0.2 < sum(fired) / 1000 < 0.3


def test_take_with_same_seed_repeats_whatever_the_order():
    list_ = [Fault("status", "stuck", rate=0.5), Fault("status", "drop", rate=0.5)]
    orders = ["abc" * 30, "a" * 30 + "c" * 30 + "b" * 30]
    one, two = (fire(Faults(list_, seed=5), order) for order in orders)
    assert one == two
    assert one["a"] != one["b"]
    assert fire(Faults(list_, seed=6), orders[0]) != one


def test_replace_begins_all_counts_anew():
    list_ = [Fault("status", "stuck", rate=0.5, times=5)]
    faults = Faults(list_)
    runs = []
    for _ in range(2):
        runs.append(fire(faults, "p" * 40))
        faults.replace(list_)
    assert [one["fired"] for one in faults.to_json()] == [0]
    assert runs[0] == runs[1]
    assert sum(itertools.chain.from_iterable(runs[0].values())) == 5
