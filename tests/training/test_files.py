"""Files of a run: strict JSON, whatever the numbers are."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hf_ssl.training.files import write_json


def test_a_number_that_is_not_finite_is_null(tmp_path: Path):
    path = tmp_path / "x.json"
    endless = [math.nan, {"b": -math.inf, 0.5: 2.0}, (np.float64("inf"), 3, True, None, "NaN")]
    write_json(path, {"a": endless, "kept": 1e300})
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found == {"a": [None, {"b": None, "0.5": 2.0}, [None, 3, True, None, "NaN"]], "kept": 1e300}
