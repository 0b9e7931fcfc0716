"""Amounts are whole nano-USD: read from decimal dollars, shown so, and never a float between."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ground.money import MOST_USD, NANO, format_usd, parse_usd, price_units

AMOUNTS = st.integers(0, MOST_USD * NANO)


@given(AMOUNTS)
def test_amount_comes_back_as_it_was_shown(nano_usd):
    assert parse_usd(format_usd(nano_usd)) == nano_usd


@given(AMOUNTS)
def test_shown_amount_is_exact_and_has_cents(nano_usd):
    shown = format_usd(nano_usd)
    assert Decimal(shown) * NANO == nano_usd
    assert 2 <= len(shown.partition(".")[2]) <= 9
    assert format_usd(-nano_usd) == (f"-{shown}" if nano_usd else shown)


@given(st.decimals(0, MOST_USD, allow_nan=False, allow_infinity=False))
def test_amount_is_read_exactly_or_not_at_all(usd):
    """Nothing is rounded."""
    try:
        read = parse_usd(str(usd))
    except ValueError:
        assert usd != round(usd, 9)
    else:
        assert Decimal(read) / NANO == usd


@pytest.mark.parametrize(
    ("text", "nano_usd"),
    [
        ("0.001605", 1_605_000),
        ("12.50", 12_500_000_000),
        (" 25 ", 25 * NANO),
        ("0.1", 100_000_000),
        ("0.000000001", 1),
        ("1e-3", 1_000_000),
        ("0", 0),
        ("1000000", MOST_USD * NANO),
    ],
)
def test_amount_in_dollars_is_exact(text, nano_usd):
    assert parse_usd(text) == nano_usd


@pytest.mark.parametrize(
    "text",
    [
        *("", "free", "-1", "-0.01", "1,50", "$5", "NaN", "sNaN", "inf", "-inf", "0.0000000001"),
        *("1000000.01", "1e9", "1e999999999", "1e-999999999", "0x10", "1 000", "9" * 5000),
    ],
)
def test_what_is_no_amount_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match="USD from 0 to 1000000, with at most 9 decimals"):
        parse_usd(text)


@given(st.integers(0, 10**6), st.integers(0, 10**10))
def test_whole_units_cost_the_product(units, unit_price):
    assert price_units(units, unit_price) == price_units(Decimal(units), unit_price)
    assert price_units(units, unit_price) == units * unit_price


@pytest.mark.parametrize(
    ("units", "unit_price", "nano_usd"),
    [("112", 1_605_000, 179_760_000), ("0.5", 3, 2), ("1e-9", 1, 1), ("0", 7, 0), ("1.5", 2, 3)],
)
def test_fraction_of_a_nano_dollar_is_rounded_up(units, unit_price, nano_usd):
    assert price_units(Decimal(units), unit_price) == nano_usd
