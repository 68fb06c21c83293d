"""Events of a camera: what is believed of a file's numbers."""

import numpy as np
import pytest

from soul_deploy.base import Array, errors
from soul_deploy.base.events import EVENT, Recording, count_of, packed, recording_of

COLUMNS = {"t": [5, 3, 2**63 - 1], "x": [0, 33, 7], "y": [33, 0, 1], "p": [0, 1, 1]}


def columns(**changed: list[int]) -> list[Array]:
    return [np.array(values, np.uint64) for values in (COLUMNS | changed).values()]


def test_events_keep_their_values_and_order() -> None:
    found = recording_of(packed("a.bin", *columns()), 34, 34, "a.bin")
    assert found.events.dtype == EVENT and len(found) == 3
    assert {name: found.events[name].tolist() for name in COLUMNS} == COLUMNS


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x": [0, 34, 7]}, "event 1 at x = 34, outside of the sensor of 34×34"),
        ({"y": [0, 0, 99]}, "event 2 at y = 99"),
        ({"p": [2, 1, 1]}, "event 0 of polarity 2"),
        ({"x": [0, 65536, 7]}, "x from 0 to 65536; it is from 0 to 65535"),
        ({"p": [0, 256, 1]}, "p from 0 to 256"),
        ({"t": [0, 1, 2**63]}, f"t from 0 to {2**63}; it is from 0 to {2**63 - 1}"),
        ({"y": [0, 1]}, "2 values of y, 3 of t"),
    ],
)
def test_wrong_events_name_the_file_and_the_rule(changed: dict[str, list[int]], told: str) -> None:
    with pytest.raises(errors.FileFormatError, match=f"^a.bin: .*{told}"):
        recording_of(packed("a.bin", *columns(**changed)), 34, 34, "a.bin")


def test_numbers_that_are_no_events() -> None:
    t, x, y, p = columns()
    for given, told in ((t.astype(float), "t is float64"), (-t.astype(np.int64), "from -")):
        with pytest.raises(errors.FileFormatError, match=told):
            packed("a.bin", given, x, y, p)
    with pytest.raises(errors.ValidityError, match="needed"):
        Recording(x, 34, 34)
    with pytest.raises(errors.ValidityError, match="sensor of 0×34"):
        Recording(np.zeros(0, EVENT), 0, 34)


def test_records_are_whole_and_as_many_as_declared() -> None:
    assert count_of(80, 16, "a") == 5
    assert count_of(80, 16, "a", 5) == 5
    with pytest.raises(errors.FileFormatError, match="a is cut off or damaged: 81 bytes"):
        count_of(81, 16, "a")
    with pytest.raises(errors.FileFormatError, match="6 events declared, 5 there"):
        count_of(80, 16, "a", 6)
