"""One way to make an input with tritonclient, for the loops written here."""

import numpy as np
from tritonclient.http import InferInput


def tensor(name: str, datatype: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> InferInput:
    """One input of a batch; `values` has the shape [rows, 1]."""
    made = InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made
