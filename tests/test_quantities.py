import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telescopic.quantities import human, parse_quantity


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (784, "", "784"),
        (7850, "", "7.85 k"),
        (1_238_730, "", "1.24 M"),
        (999_999, "", "1.00 M"),
        (99_960, "", "100 k"),
        (4_954_920, "B", "4.95 MB"),
        (0.5, "", "0.500"),
        (2e15, "", "2000 T"),
        (1.2999, "ms", "1.30 ms"),
        (0.009934, "ms", "0.00993 ms"),
        (2500, "ms", "2500 ms"),
        (9, "ms", "9.00 ms"),
        (0.9843, "%", "98.43 %"),
        (float("inf"), "B", "∞ B"),
    ],
)
def test_three_digits_and_a_prefix(value: float, unit: str, text: str) -> None:
    assert human(value, unit) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("700k", 700_000),
        ("24M", 24e6),
        ("1.5G", 1.5e9),
        ("62MB", 62e6),
        ("1e6", 1e6),
        (" 1.24 M ", 1.24e6),
        ("4MiB", 4 * 2**20),
        ("2 kib", 2048),
        ("512 B", 512),
        (".5t", 5e11),
        ("3.e-2", 0.03),
        ("0", 0),
    ],
)
def test_people_type_quantities(text: str, value: float) -> None:
    assert parse_quantity(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "text", ["", "k", "-1", "nan", "inf", "7 apples", "1,5M", "1.2.3", "5i", "1e999", "70 0k", "1kk"]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="as a quantity: write for example 700k"):
        parse_quantity(text)


@settings(deadline=None)
@given(st.one_of(st.integers(0, 10**14), st.floats(1e-3, 1e14)), st.sampled_from(["", "B"]))
def test_what_is_written_can_be_read_to_three_digits(value: float, unit: str) -> None:
    assert parse_quantity(human(value, unit)) == pytest.approx(value, rel=0.005)
