"""Matrices for the tests of the spectra, and the operator interface around them."""

from __future__ import annotations

import numpy as np


class Dense:
    """A matrix as an operator whose products are float32, as those of a model's layer are."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = np.asarray(matrix, np.float32)
        self.shape = self.matrix.shape
        self.products = 0

    def matmat(self, x: np.ndarray) -> np.ndarray:
        self.products += 1
        return self.matrix @ np.asarray(x, np.float32)

    def rmatmat(self, y: np.ndarray) -> np.ndarray:
        self.products += 1
        return self.matrix.T @ np.asarray(y, np.float32)

    def round_trip(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = self.matmat(x)
        return y, self.rmatmat(y)


def with_values(values: np.ndarray, rows: int, columns: int, seed: int) -> np.ndarray:
    """A matrix of these singular values between random orthonormal vectors."""
    random = np.random.default_rng(seed)
    left, _ = np.linalg.qr(random.standard_normal((rows, len(values))))
    right, _ = np.linalg.qr(random.standard_normal((columns, len(values))))
    return (left * values) @ right.T


def spectra() -> dict[str, np.ndarray]:
    """Square and rectangular matrices, well and badly behaved, by name."""
    random = np.random.default_rng(11)
    noise = random.standard_normal((120, 120))
    planted = 3000 * np.outer(random.standard_normal(120), random.standard_normal(120)) / 120
    return {
        "random": noise,
        "tall": random.standard_normal((150, 40)),
        "wide": random.standard_normal((40, 150)),
        "planted rank one": planted + noise,
        "identity and planted": np.eye(120) + planted / 100 + noise / 100,
        "two planted": with_values(np.array([500.0, 400, *np.linspace(3, 1, 118)]), 120, 120, 1),
        "clustered": with_values(10 - np.linspace(0, 0.05, 120), 120, 120, 2),
        "clustered below a gap": with_values(np.r_[30.0, np.full(119, 3.0)], 120, 120, 3),
        "equal leading pair": with_values(np.r_[7.0, 7.0, np.linspace(2, 0, 98)], 100, 100, 4),
        "rank 1": with_values(np.array([5.0]), 60, 50, 5),
        "rank 2": with_values(np.array([5.0, 4.0]), 60, 50, 6),
        "rank 9": with_values(np.linspace(9, 1, 9), 60, 60, 7),
        "wide range": with_values(np.geomspace(1e6, 1e-6, 80), 80, 80, 8),
        "tiny values": 1e-12 * random.standard_normal((50, 50)),
        "huge values": 1e12 * random.standard_normal((50, 50)),
        "1 x 1": np.array([[-3.0]]),
        "1 x 5": np.array([[1.0, -2, 3, 0, 1]]),
        "5 x 1": np.array([[1.0], [-2], [3], [0], [1]]),
        "2 x 2": np.array([[2.0, 1], [0, -1]]),
        "3 x 3": np.array([[0.0, 1, 0], [0, 0, 2], [3, 0, 0]]),
        "identity": np.eye(60),
        "minus identity": -np.eye(60),
        "zero": np.zeros((40, 30)),
        "zero 1 x 1": np.zeros((1, 1)),
        "one entry": np.pad([[4.0]], ((17, 32), (3, 46))),
    }
