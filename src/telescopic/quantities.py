"""Numbers with a unit, and words from a list, as people write and read them. No torch."""

import math
import re
from collections.abc import Iterable
from typing import TypeVar

Number = TypeVar("Number", int, float)

_POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4}
_PATTERN = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?\s*(?:([kmgt])(i?))?(b?)", re.IGNORECASE)


def human(value: float, unit: str = "") -> str:
    """Write a quantity with three digits: `1.24 M`, `4.95 MB`, `1.30 ms`, `97.50 %`.

    Args:
        value: the quantity.
        unit: what it counts: `""` for a plain number and `"B"` for bytes take decimal prefixes (1 kB = 1000 B), `"ms"`
            takes none, and `"%"` writes a fraction as a percentage with two decimals.
    """
    if unit == "%":
        return f"{100 * value:.2f} %"
    if value < 0:
        return f"-{human(-value, unit)}"
    if math.isinf(value):
        return f"∞ {unit}".rstrip()
    prefixes = [""] if unit == "ms" else list(_POWERS)
    power = 0
    # Compared after rounding, so that 999 999 is written 1.00 M and not 1000 k.
    while power < len(prefixes) - 1 and float(f"{value / 1000**power:.3g}") >= 1000:
        power += 1
    scaled = value / 1000**power
    whole = unit in ("", "B") and power == 0 and value == int(value)  # a count, not a measurement
    digits = 0 if whole or scaled == 0 else max(0, 2 - math.floor(math.log10(float(f"{scaled:.3g}"))))
    return f"{scaled:.{digits}f} {prefixes[power]}{unit}".rstrip()


def parse_quantity(text: str) -> float:
    """Read a quantity as `human` writes it or as people type it: `700k`, `1.24 M`, `62MB`, `1.5 GiB`, `1e6`.

    Upper and lower case are the same; k, M, G and T are powers of 1000, and with an i behind them of 1024.

    Raises:
        ValueError: if the text has another form.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"cannot read {text!r} as a quantity: write for example 700k, 1.5M, 62MB, 4MiB or 1e6")
    number, exponent, prefix, binary, _ = match.groups()
    power = _POWERS[(prefix or "").upper().replace("K", "k")]
    return float(number + (exponent or "")) * float((1024 if binary else 1000) ** power)


def one_of(what: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a word that is none of those allowed.

    Raises:
        ValueError: which says what there is.
    """
    if value not in (allowed := tuple(allowed)):
        raise ValueError(f"{what} is one of {', '.join(allowed)}, not {value!r}")


def numbers(option: str, text: str, kind: type[Number], wanted: str) -> tuple[Number, ...]:
    """Numbers separated by commas.

    Raises:
        ValueError: if the text is anything else.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes {wanted}, not {text!r}") from None
