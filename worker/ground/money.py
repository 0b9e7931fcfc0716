"""Money is integer nano-USD everywhere: 1 USD is 10⁹. Read from and shown as decimal dollars."""

from decimal import ROUND_CEILING, Decimal, InvalidOperation

NANO = 10**9
MOST_USD = 1_000_000
ALLOWED = f"an amount in USD from 0 to {MOST_USD}, with at most 9 decimals, such as 12.50"


def parse_usd(text: str) -> int:
    """Nano-USD. Raises ValueError with what is allowed."""
    try:
        usd = Decimal(str(text).strip())
    except InvalidOperation:
        raise ValueError(ALLOWED) from None
    # Arithmetic on Decimal rounds and overflows; comparisons are exact.
    if not usd.is_finite() or not 0 <= usd <= MOST_USD:
        raise ValueError(ALLOWED)
    nano = int(usd * NANO)
    if Decimal(nano).scaleb(-9) != usd:
        raise ValueError(ALLOWED)
    return nano


def format_usd(nano_usd: int) -> str:
    """Exact, with at least two decimals: `0.171735`, `12.50`."""
    sign, whole = "-" if nano_usd < 0 else "", abs(nano_usd)
    cents = f"{whole % NANO:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole // NANO}.{cents}"


def price_units(units: Decimal | int, unit_price_nano_usd: int) -> int:
    """What so many units cost, a fraction of a nano-USD rounded up."""
    return int((Decimal(units) * unit_price_nano_usd).to_integral_value(ROUND_CEILING))
