"""L of a block from its transformers modules alone, as a dense matrix with its own error bar.

The reference knows neither tensor names nor our code. Attention that is affine in a single token
has the Jacobian of its module; every other branch is fitted by least squares on what its module
returns for Gaussian vectors. With residuals r of such a fit on N vectors z, the fit differs from
E[Jacobian] by the mean of r z', each term of which has mean 0: that is the error to expect. A norm
behind a branch divides by the root mean square of what the module returns for Gaussian vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import ckptforensics
from ckptforensics.layers import load_block
from ckptforensics.linear import Fit, block_map
from tests.support.families.wiring import Branch, Experts, Map, Rows, Wiring, choose_block, wire

Matrix = NDArray[np.float64]
# Numbers of vectors: those of `tools.families_report`, and a third of them for the tests.
COUNTS = (100_000, 1_000_000)
TEST_COUNTS = (30_000, 300_000)
ROWS_AT_ONCE = 2000  # what fits into a processor's cache
KEPT = 10  # blocks of rows from which residuals and derivatives are estimated
ATTENTION_SHARE = 5  # attention is slow and nearly affine: a fifth of the vectors will do
# Vectors over which `ckptforensics` averages a router's weights: its own sampling error.
ROUTER_SAMPLES = 4096
# Vectors over which `ckptforensics` takes the size of what enters a norm behind a branch: as well.
SIZE_SAMPLES = 512
SIZE_COUNT = 50_000  # of the reference's own vectors: a tenth of that error


@dataclass(frozen=True)
class Affine:
    """A norm on normalised vectors z: gain z + bias.

    Attributes
    ----------
    gain, bias : (hidden_size,)
    centred : the norm takes the mean away
    """

    gain: Rows
    bias: Rows
    centred: bool

    def matrix(self) -> Matrix:
        """diag(gain), times I - 11'/d where the norm centres."""
        d = len(self.gain)
        centre = torch.eye(d, dtype=torch.float64)
        return (self.gain[:, None] * (centre - 1 / d if self.centred else centre)).numpy()


@dataclass(frozen=True)
class Estimate:
    """A branch's linear map before its norm and factor, at growing numbers of vectors.

    Attributes
    ----------
    maps : number of vectors to the map; equal for all numbers where the map is exact
    z, residuals : some of the vectors and the fit's residuals there, (k, d); None where exact
    drifts : maps whose sum over Gaussian factors is the error of averaged router weights
    share : the fit used this part of each number of vectors
    """

    maps: dict[int, Matrix]
    z: Matrix | None = None
    residuals: Matrix | None = None
    drifts: tuple[Matrix, ...] = ()
    share: int = 1

    def square_error(self, left: Matrix, right: Matrix, count: int) -> float:
        """Expected |left (map - true map) right|_F^2."""
        total = sum(float(np.sum((left @ drift @ right) ** 2)) for drift in self.drifts)
        if self.z is not None and self.residuals is not None:
            rest = np.sum((self.residuals @ left.T) ** 2, axis=1)
            total += (
                float(np.mean(rest * np.sum((self.z @ right) ** 2, axis=1))) * self.share / count
            )
        return total


@dataclass(frozen=True)
class Size:
    """What a norm behind a branch or a sum divides by.

    Attributes
    ----------
    value : root mean square of what enters it, centred where the norm centres
    error : relative standard error to expect of the same over SIZE_SAMPLES vectors
    """

    value: float
    error: float


class BlockReference:
    """L of one block.

    Parameters
    ----------
    wiring : the block's parts
    width : hidden_size
    counts : of the vectors that maps are fitted on, ascending
    """

    def __init__(self, wiring: Wiring, width: int, counts: Sequence[int]) -> None:
        self.wiring = wiring
        self.identity = np.eye(width)
        attention = wiring.attention
        affine = _affine_attention(attention, width)
        if affine is None:
            few = _fitted(attention, width, [c // ATTENTION_SHARE for c in counts], seed=1)
            maps = {ATTENTION_SHARE * count: m for count, m in few.maps.items()}
            self.attention = replace(few, maps=maps, share=ATTENTION_SHARE)
        else:
            # Some modules take one token a call; the affine function takes many.
            jacobian, function = affine
            self.attention = Estimate(dict.fromkeys(counts, jacobian))
            attention = replace(attention, call=function)
        self.ffn = _fitted(wiring.ffn, width, counts, seed=2)
        self.attention_sizes = _sizes(attention, width)
        self.ffn_sizes = _sizes(wiring.ffn, width)

    def linear_map(self, count: int) -> tuple[Matrix, float, float]:
        """L with `count` vectors, the Frobenius norm of its error to expect, and that of sizes.

        The second error is that of L of `ckptforensics`, from the sizes that its norms divide by.
        """
        a, a_scale = self._branch(
            self.attention.maps[count], self.wiring.attention, self.attention_sizes[0]
        )
        f, f_scale = self._branch(self.ffn.maps[count], self.wiring.ffn, self.ffn_sizes[0])
        # How far L moves by the standard error of each size.
        moved = [self.attention_sizes[0].error * a, self.ffn_sizes[0].error * f]
        if self.wiring.parallel:
            whole, before, behind = self.identity + a + f, self.identity, self.identity
        else:
            before, a_end = _after(
                self.identity + a, self.wiring.attention.after, self.attention_sizes[1]
            )
            behind, f_end = _after(self.identity + f, self.wiring.ffn.after, self.ffn_sizes[1])
            whole = behind @ before
            a_scale, f_scale = a_end @ a_scale, f_end @ f_scale
            moved = [behind @ a_end @ moved[0], f_end @ moved[1] @ before]
            moved += [size[1].error * whole for size in (self.attention_sizes, self.ffn_sizes)]
        square = self.attention.square_error(behind @ a_scale, self.identity, count)
        square += self.ffn.square_error(f_scale, before, count)
        return whole, float(np.sqrt(square)), float(np.linalg.norm([*map(np.linalg.norm, moved)]))

    def _branch(self, linear: Matrix, branch: Branch, size: Size) -> tuple[Matrix, Matrix]:
        """The map with the branch's own norm and factor, and these as a matrix."""
        _, scale = _after(linear, branch.post, size)
        factor = torch.as_tensor(branch.factor).detach().double().numpy()
        scale = np.broadcast_to(factor, len(linear))[:, None] * scale
        return scale @ linear, scale


def convention_and_least_squares(branch: Branch, width: int, count: int) -> tuple[Matrix, Matrix]:
    """A branch with the norm behind it or its sum: by L's convention, and its best linear map."""
    linear = _fitted(branch, width, [count], seed=2).maps[count]
    own, whole = _sizes(branch, width)
    if branch.after is not None:
        linear, norm, size = np.eye(width) + linear, branch.after, whole
        inside = replace(branch, call=lambda x: norm(x + branch.call(x)))
    else:
        norm, size = branch.post, own
        inside = replace(branch, call=lambda n: norm(branch.call(n)))
    return _after(linear, norm, size)[0], _fitted(inside, width, [count], seed=2).maps[count]


def _sizes(branch: Branch, width: int) -> tuple[Size, Size]:
    """Sizes of what enters the norm behind the branch and the norm behind its sum."""
    if branch.post is None and branch.after is None:
        return Size(1, 0), Size(1, 0)
    assert branch.before is None or branch.after is None  # the sum adds z itself
    squares = []
    for z, n in _gaussian(_affine(branch.before, width), SIZE_COUNT, seed=3):
        with torch.no_grad():
            result = branch.call(n)
            added = result if branch.post is None else branch.post(result)
            entering = ((result, branch.post), (z + branch.factor * added, branch.after))
            squares.append([_mean_squares(rows, norm) for rows, norm in entering])
    own, whole = np.concatenate(squares, axis=1)
    return (
        _size(own) if branch.post is not None else Size(1, 0),
        _size(whole) if branch.after is not None else Size(1, 0),
    )


def _mean_squares(rows: Rows, norm: nn.Module | None) -> Matrix:
    """Mean square of each row, centred where the norm centres."""
    rows = rows.double()
    if _affine(norm, rows.shape[1]).centred:
        rows = rows - rows.mean(dim=1, keepdim=True)
    return (rows**2).mean(dim=1).numpy()


def _size(squares: Matrix) -> Size:
    """Of the root of a mean of N squares, the relative error is half the mean's."""
    spread = squares.std() / squares.mean() / np.sqrt(SIZE_SAMPLES)
    return Size(float(np.sqrt(squares.mean())), float(spread / 2))


def _after(linear: Matrix, norm: nn.Module | None, size: Size) -> tuple[Matrix, Matrix]:
    """norm(M z) where what enters the norm has that size; and M's factor."""
    if norm is None:
        return linear, np.eye(len(linear))
    scale = _affine(norm, len(linear)).matrix() / size.value
    return scale @ linear, scale


def _affine_attention(branch: Branch, width: int) -> tuple[Matrix, Map] | None:
    """Jacobian of attention with respect to z, and attention as the affine function of n it is.

    None where the Jacobian differs from token to token.
    """
    norm = _affine(branch.before, width)
    generator = torch.Generator().manual_seed(5)
    here, *others = (2 * torch.randn(1, width, generator=generator) for _ in range(9))
    jacobian = torch.autograd.functional.jacobian(lambda n: branch.call(n)[0], here)[:, 0]
    with torch.no_grad():
        for there in others:
            step = branch.call(there) - branch.call(here)
            error = torch.linalg.norm(step - (there - here) @ jacobian.T)
            if error > 1e-4 * torch.linalg.norm(step):
                return None
        constant = branch.call(here) - here @ jacobian.T
    return jacobian.double().numpy() @ norm.matrix(), lambda n: n @ jacobian.T + constant


def _fitted(branch: Branch, width: int, counts: Sequence[int], seed: int) -> Estimate:
    """The branch's map by least squares with intercept, at each of the `counts`."""
    norm = _affine(branch.before, width)
    call, drifts = branch.call, ()
    if branch.experts is not None:
        call, drifts = _mean_experts(branch.experts, norm, counts[0], seed)
    gram = np.zeros((width + 1, 2 * width + 1))
    maps, rows, done = {}, [], 0
    for z, n in _gaussian(norm, counts[-1], seed):
        with torch.no_grad():
            y = call(n).double().numpy()
        row = np.concatenate([np.ones((len(z), 1)), z.double().numpy(), y], axis=1)
        gram += row[:, : width + 1].T @ row
        rows = [*rows[1 - KEPT :], row]
        done += len(z)
        if done in counts:
            # Minimum norm: centred vectors lie in a hyperplane.
            inverse = np.linalg.pinv(gram[:, : width + 1], rcond=1e-10, hermitian=True)
            solution = inverse @ gram[:, width + 1 :]
            maps[done] = solution[1:].T
    z, y = np.split(np.concatenate(rows), [width + 1], axis=1)
    return Estimate(maps, z[:, 1:], y - z @ solution, drifts)


def _mean_experts(
    experts: Experts, norm: Affine, count: int, seed: int
) -> tuple[Map, tuple[Matrix, ...]]:
    """The layer of experts with the mean weights of its own router, and their uncertainty.

    Each expert reads every vector. Where the router weighs what experts read, an expert has the
    mean weight of those that chose it on its input and its share of them on its output. The means
    are over the fewest vectors: those that ours are over are fewer still, and decide the error.
    """
    seen = []
    with torch.no_grad():
        for _, n in _gaussian(norm, count, seed):
            weights = experts.weights(n)
            chosen = [(weights > 0).to(weights.dtype)] if experts.on_input else []
            shared = [] if experts.shared_weight is None else [experts.shared_weight(n)]
            seen.append(torch.cat([*chosen, weights, *shared], dim=1))
    samples = torch.cat(seen)
    mean = samples.mean(dim=0)

    def call(n: Rows) -> Rows:
        return experts.mixed(n, mean)

    # Both ours and these means are taken over samples: the map's derivatives by the means, along
    # the principal axes of the means' errors.
    spread = torch.cov(samples.T.double()) * (1 / ROUTER_SAMPLES + 1 / count)
    sizes, axes = torch.linalg.eigh(spread)
    steps = (sizes.clamp(min=0).sqrt() * axes).T.float()
    # What experts return is mixed linearly: then each of the means is moved by 1, and alone, which
    # asks one expert instead of all.
    at, moves = (mean, steps) if experts.on_input else (0 * mean, torch.eye(len(mean)))
    moved = torch.zeros(len(moves), norm.gain.numel(), norm.gain.numel()).double()
    for z, n in _gaussian(norm, KEPT * ROWS_AT_ONCE, seed + 10):
        with torch.no_grad():
            here = experts.mixed(n, at)
            for matrix, move in zip(moved, moves, strict=True):
                change = experts.mixed(n, at + move) - here
                matrix += change.double().T @ z.double() / (KEPT * ROWS_AT_ONCE)
    if not experts.on_input:
        moved = torch.einsum("se,eij->sij", steps.double(), moved)
    return call, tuple(moved.numpy())


def _gaussian(norm: Affine, count: int, seed: int) -> Iterator[tuple[Rows, Rows]]:
    """Normalised Gaussian vectors and what the norm makes of them, in blocks."""
    generator = torch.Generator().manual_seed(seed)
    gain, bias = norm.gain.float(), norm.bias.float()
    for _ in range(0, count, ROWS_AT_ONCE):
        z = torch.randn(ROWS_AT_ONCE, len(gain), generator=generator)
        if norm.centred:
            z -= z.mean(dim=1, keepdim=True)
        yield z, z * gain + bias


def _affine(norm: nn.Module | None, width: int) -> Affine:
    """Gain and bias from a norm's values at vectors of mean 0, so large that eps is nothing."""
    signs = torch.ones(width, dtype=torch.float64)
    if norm is None:
        return Affine(signs, torch.zeros_like(signs), centred=False)
    signs[::2] = -1
    double = norm.double()
    with torch.no_grad():
        plus, minus, moved = (double(v * 1e4) for v in (signs, -signs, signs + 1))
    norm.float()
    bias = (plus + minus) / 2
    centred = torch.allclose(moved, plus, rtol=1e-5, atol=1e-6)
    return Affine((plus - bias) / signs, bias, centred)


@dataclass(frozen=True)
class Comparison:
    """Our L beside the reference.

    Attributes
    ----------
    errors : number of vectors to the relative Frobenius norm of the difference
    noise : the same, as the reference's sampling noise alone would make it
    sizes : the same, as the sampling error of the sizes of norms behind branches would
    experts : the noise contains that of the means of a router's weights
    """

    errors: dict[int, float]
    noise: dict[int, float]
    sizes: float
    experts: bool

    @property
    def expected(self) -> dict[int, float]:
        """Number of vectors to the difference that noise and sizes would make together."""
        return {count: float(np.hypot(noise, self.sizes)) for count, noise in self.noise.items()}

    def problem(self) -> str | None:
        """What speaks against a difference by the reference's noise alone, None for nothing.

        The difference has the size of the noise at each number of vectors, and so falls as one
        over its square root. The means of a router's weights, ours over 4,096 vectors, differ by a
        handful of Gaussian numbers: that part of the noise scatters more than that of a whole
        matrix, and does not fall. Nor does the part of our sizes, over 512 vectors: one or two
        Gaussian numbers, of which three standard deviations are allowed.
        """
        low, high = (0.4, 2.0) if self.experts else (0.75, 1.35)
        for count, error in self.errors.items():
            noise = self.noise[count]
            if not low * noise < error < np.hypot(high * noise, 3 * self.sizes):
                return f"{error:.2e} with {count:,} vectors, {self.expected[count]:.2e} is expected"
        (least, few), (most, many) = self.errors.items()
        root = np.sqrt(most / least)
        falls = few > many if self.experts or self.sizes else low < few / many / root < high
        return None if falls else f"{few:.2e} falls to {many:.2e} with {root**2:.0f} times as many"


def compare(
    model: nn.Module,
    blocks: str,
    run: Callable[[nn.Module], Any],
    folder: Path,
    counts: tuple[int, int] = TEST_COUNTS,
) -> Comparison:
    """Compare L of one block of a model with that of its files.

    Parameters
    ----------
    model : the transformers model
    blocks : attribute path to its blocks
    run : makes the model process one token alone; given the block
    folder : where the model is saved
    counts : numbers of vectors, ascending
    """
    number = choose_block(model, blocks)
    module = attrgetter(blocks)(model)[number]
    block = load_block(ckptforensics.open_checkpoint(folder), number + 1)
    ours = block_map(block, Fit()).dense().astype(np.float64)
    wiring = wire(model, blocks, number, lambda: run(module))
    reference = BlockReference(wiring, len(ours), counts)
    errors, noise, sizes = {}, {}, 0.0
    for count in counts:
        theirs, fit_error, size_error = reference.linear_map(count)
        whole = float(np.linalg.norm(theirs))
        errors[count] = float(np.linalg.norm(ours - theirs)) / whole
        noise[count], sizes = fit_error / whole, size_error / whole
    return Comparison(errors, noise, sizes, experts=bool(reference.ffn.drifts))
