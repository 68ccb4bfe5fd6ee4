"""Tables: numbers rounded, draws as mean and spread, the same in text and in HTML."""

import numpy as np
import pytest

from tlkeras.utils.tables import table


def test_cells_are_shown_by_their_kind():
    assert repr(table([["\udcff", 1]], ["x", "y"])).splitlines()[-1] == "?  1"
    row = ["a", 12345, 0.25, np.float32(2), [1, 3], np.array([4]), True, None]
    (cells,) = table([row], ["x"] * 8, digits=2).cells
    assert cells == ["a", "12,345", "0.25", "2.00", "2.00 ± 1.41", "4.00", "True", "None"]


@pytest.mark.parametrize(("digits", "shown"), [(1, "82.4 ± 0.6"), (0, "82 ± 1"), (-1, "80 ± 0")])
def test_means_are_rounded(digits, shown):
    assert table({"one": [82, 82.8]}, digits=digits).cells == [["one", shown]]


def test_a_mapping_of_mappings_has_a_column_each():
    found = table({"near": {5: [1, 1], 30: [2]}, "far": {5: 3.0}}, "target", 0, note="Two < three.")
    assert found.header == ["target", "5", "30"]
    assert found.cells == [["near", "1 ± 0", "2"], ["far", "3", "-"]]
    assert repr(found).endswith("\n\nTwo < three.")
    assert found._repr_html_().startswith("<table") and "Two &lt; three." in found._repr_html_()
