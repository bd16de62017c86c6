import numpy as np
import pytest

from hf_ssl.data.views.draws import NUM_DRAWS, ROW_LENGTH, as_row, draw_rows, draw_view, numbers_between, numbers_of
from hf_ssl.data.views.recipes import VIEW_RECIPES


@pytest.mark.parametrize("recipe", sorted(VIEW_RECIPES))
@pytest.mark.parametrize("size", [(32, 32), (96, 64), (3, 900), (375, 500)])
def test_drawing_many_views_at_once_changes_no_bit(recipe, size):
    numbers = np.random.default_rng(0).random((200, NUM_DRAWS))
    for parameters in (VIEW_RECIPES[recipe].first, VIEW_RECIPES[recipe].second):
        one_by_one = [as_row(draw_view(*size, parameters, row)) for row in numbers.tolist()]
        rows = draw_rows(*size, parameters, numbers)
        assert rows.shape == (200, ROW_LENGTH)
        np.testing.assert_array_equal(rows, one_by_one)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 64), (63, 65), (100, 300), (64, 128)])
def test_numbers_of_many_places_are_those_of_each(start, end):
    expected = [numbers_of(3, 2, 1, place) for place in range(start, end)]
    np.testing.assert_array_equal(numbers_between(3, 2, 1, start, end), expected)
