"""Money is integer nano-USD everywhere: 1 USD is 10⁹. Read from and shown as decimal dollars."""

from decimal import ROUND_CEILING, Decimal, InvalidOperation

NANO = 10**9
MOST_USD = 1_000_000
ALLOWED = f"an amount in USD from 0 to {MOST_USD}, with at most 9 decimals, such as 12.50"


def parse_usd(text: str) -> int:
    """Nano-USD. Raises ValueError with what is allowed."""
    try:
        nano = Decimal(str(text).strip()) * NANO
    except InvalidOperation:
        raise ValueError(ALLOWED) from None
    if not nano.is_finite() or not 0 <= nano <= MOST_USD * NANO or nano != int(nano):
        raise ValueError(ALLOWED)
    return int(nano)


def format_usd(nano_usd: int) -> str:
    """Exact, with at least two decimals: `0.171735`, `12.50`."""
    sign, whole = "-" if nano_usd < 0 else "", abs(nano_usd)
    cents = f"{whole % NANO:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole // NANO}.{cents}"


def price_units(units: Decimal | int, unit_price_nano_usd: int) -> int:
    """What so many units cost, a fraction of a nano-USD rounded up."""
    return int((Decimal(units) * unit_price_nano_usd).to_integral_value(ROUND_CEILING))
