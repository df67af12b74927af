"""The kinds of NumPy arrays that functions take and give. Shapes stand in their docstrings."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

# Values of whatever type a model stores, or a user gives: numbers, bfloat16 and int4 of ml_dtypes, text.
AnyArray: TypeAlias = npt.NDArray[Any]
# Numbers of single or double precision, whichever the network has.
FloatArray: TypeAlias = npt.NDArray[np.floating]
# Numbers that mathematics is done in.
Float64Array: TypeAlias = npt.NDArray[np.float64]
