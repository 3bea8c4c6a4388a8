"""inverse_of: the same bytes in both backends, the inverse in exact arithmetic, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from orbitsplit._backend import load_backend

BACKENDS = [load_backend("native"), load_backend("numba")]


def exact_inverse(matrix):
    """Return the inverse of rows of numbers as fractions, by elimination on the matrix beside the identity."""
    n = len(matrix)
    rows = [
        [*map(Fraction, map(float, row)), *(Fraction(int(i == j)) for j in range(n))] for i, row in enumerate(matrix)
    ]
    for k in range(n):
        pivot = next(i for i in range(k, n) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for i in range(n):
            if i != k:
                rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k], strict=True)]
    return np.array([[float(x) for x in row[n:]] for row in rows])


def matrices():
    rng = np.random.default_rng(3)
    yield np.float32([[-3]])
    yield np.eye(7, dtype=np.float32)[[3, 0, 6, 1, 5, 2, 4]]  # every pivot lies below
    yield np.float32([[1e-30, 1], [1, 1]])  # whose first pivot would cost all digits
    yield np.float32([[0, -2], [3, 0]])  # zeros of either sign
    for n in (2, 5, 9):
        yield rng.standard_normal((n, n)).astype(np.float16).astype(np.float32)
        yield (rng.standard_normal((n, n)) * 10.0 ** rng.uniform(-3, 3, (n, 1))).astype(np.float32)


@pytest.mark.parametrize("matrix", list(matrices()))
def test_numbers_are_those_of_exact_arithmetic(matrix):
    expected = exact_inverse(matrix)
    for module in BACKENDS:
        found = module.inverse_of(matrix)
        assert (found.dtype, found.shape) == (np.float32, matrix.shape)
        np.testing.assert_allclose(found, expected, rtol=2**-23, atol=2**-40 * np.abs(expected).max())


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 64, 131])
def test_backends_give_the_same_bytes(n):
    rng = np.random.default_rng(n)
    for kind in (np.float32, np.float16):
        matrix = (rng.standard_normal((n, n)) * 4.0 ** rng.integers(-4, 4, n)).astype(kind).astype(np.float32)
        matrix[rng.random((n, n)) < 0.2] = -0.0
        matrix[np.diag_indices(n)] += 1
        before = matrix.copy()
        native, fallback = (module.inverse_of(matrix).tobytes() for module in BACKENDS)
        assert native == fallback
        assert matrix.tobytes() == before.tobytes()


REFUSED = [
    (np.zeros((2, 2)), "matrix has no inverse: its column 0 has the pivot 0"),
    ([[1, 2], [2, 4]], "matrix has no inverse: its column 1 has the pivot 0"),
    ([[np.nan, 1], [1, 1]], "matrix has no inverse: its column 0 has the pivot nan"),
    ([[1, 1], [1, np.inf]], "matrix has no inverse: its column 1 has the pivot inf"),
    ([[1, 0], [np.nan, 1]], "matrix has no inverse: its column 1 has the pivot nan"),
    ([[2.0**-140]], r"matrix has no inverse in float32: a number of it is 1\.3938e\+42"),
    (np.zeros((0, 0)), "matrix has 0 numbers, a width of 0 needs its square, and at least 1"),
    (np.zeros((2, 3)), "matrix must be a square array of two axes"),
    (np.zeros(4), "matrix must be a square array of two axes"),
]


@pytest.mark.parametrize(("matrix", "message"), REFUSED)
def test_what_has_no_inverse_is_refused(matrix, message):
    for module in BACKENDS:
        with pytest.raises(ValueError, match=message):
            module.inverse_of(np.array(matrix, np.float32))


def test_other_numbers_than_float32_are_refused():
    for module in BACKENDS:
        with pytest.raises(TypeError):
            module.inverse_of(np.eye(3))
