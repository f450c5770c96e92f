"How far apart two correct answers may lie, because floating point adds up in one order or another."

import numpy as np


def rounding(terms, size=1.0, dtype=np.float32):
    """The bound for two sums of the same numbers, on any processor, in any order.

    Each of `terms` - 1 additions errs by at most half an eps of what has been added up by then, which is at
    most `size`, the sum of all absolute values; at worst, two orders of adding err in opposite directions.
    """
    return terms * np.finfo(dtype).eps * size
