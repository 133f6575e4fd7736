"""Settings of LUT building."""

import pytest

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.lut.config import LUTConfig


@pytest.mark.parametrize("key", ["rows_per_cell", "calibration_images", "held_out_images"])
def test_too_few_of_anything_is_refused_by_key(key):
    with pytest.raises(ConfigError, match=f"lut: {key} must be at least"):
        LUTConfig(**{key: 0})
