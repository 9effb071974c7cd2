"""Where examples come from."""

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import require_package


def digits() -> Dataset:
    """Returns scikit-learn's real handwritten digits, which need no download.

    x: uint8[1797, 8, 8, 1], the set's 17 grey levels spread over 0 to 255; y:
    int32[1797], 0 to 9 (Alpaydin and Kaynak 1998, the test part of the UCI set).
    """
    # A second of imports, only when used.
    loaded = require_package("sklearn.datasets", "the digits set").load_digits()
    images = np.round(loaded.images[..., None] * (255 / 16)).astype(np.uint8)
    return Dataset(images, loaded.target.astype(np.int32))
