"""Linear centred kernel alignment (CKA): how alike two sets of features of the same samples are.

    K = X X',  L = Y Y',   CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

    biased    HSIC(K, L) = tr(H K H L) / (n - 1)^2,   H = I - 1 1' / n
    unbiased  HSIC(K, L) = [ tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1 ]
                           / (n (n-3)),   K~, L~ with zeros on the diagonal

X (n, dx) and Y (n, dy) hold a sample per row; further axes are flattened. Range [0, 1], unbiased
[-1, 1] and about 0 for independent features, where the biased form nears 1 as d / n grows. Nearer 1
is more redundant. Rotations, reflections, shifts and one scale for all features change nothing.
Features that are constant over the samples have no kernel to align: their CKA is 0.0, with
themselves too. The unbiased form needs 4 samples.

Both forms are computed as the cosine of two n x n matrices: K centred to H K H, or to the matrix of
zero diagonal whose rows and columns sum to 0 (U-centring), which gives the same HSIC and cannot
make HSIC(K, K) negative. The cost grows with n^2 d: add batches to a `MeanCKA` instead of stacking.

Sources: Kornblith et al., arXiv 1905.00414; Song et al., JMLR 13 (2012), for the unbiased form;
RedTest, arXiv 2411.10507, for the mean over batches (10 of 256 samples, feature maps `pooled`) and
the rule of pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...ir.errors import BadInput
from .arrays import AnyArray, fixed, flat_rows, namespace

LEAST_UNBIASED = 4
"""Samples: the unbiased form divides by n - 3."""


def linear_cka(x: AnyArray, y: AnyArray, *, unbiased: bool = False) -> AnyArray:
    """Of x (n, ...) and y (n, ...), row by row the same samples: a scalar array."""
    return cka_matrix([x, y], unbiased=unbiased)[0, 1]


def pooled(maps: AnyArray) -> AnyArray:
    """Feature maps (n, channels, ...) as their means over all positions, (n, channels)."""
    xp = namespace(maps)
    if maps.ndim <= 2:
        return maps
    wide = maps if maps.dtype in (xp.float32, xp.float64) else xp.astype(maps, xp.float32)
    return xp.mean(wide, axis=tuple(range(2, maps.ndim)))


def cka_matrix(features: Sequence[AnyArray], *, unbiased: bool = False) -> AnyArray:
    """The CKA of every two of L features, each (n, ...): an array (L, L), symmetric.

    The diagonal is 1, or 0 where features are constant.
    """
    if not features:
        raise BadInput("no features to compare: give one array per layer")
    counts = {len(x) for x in features}
    if len(counts) > 1:
        raise BadInput(
            f"features of {' and '.join(map(str, sorted(counts)))} samples cannot be compared: "
            "give every layer's features of the same samples"
        )
    xp = namespace(*features)
    kernels = [xp.reshape(unit_kernel(x, unbiased=unbiased), (-1,)) for x in features]
    dtype = xp.result_type(*kernels)
    rows = xp.stack([xp.astype(kernel, dtype) for kernel in kernels])
    return rows @ xp.matrix_transpose(rows)


def unit_kernel(x: AnyArray, *, unbiased: bool = False) -> AnyArray:
    """The centred kernel (n, n) of x (n, ...), divided by its Frobenius norm; 0 for constant x."""
    x = flat_rows(x, "an array of features")
    n = x.shape[0]
    if unbiased and n < LEAST_UNBIASED:
        raise BadInput(
            f"unbiased CKA of {n} samples is not defined: give batches of at least "
            f"{LEAST_UNBIASED}, or take the biased form"
        )
    xp = namespace(x)
    # Minus the first row: constant features become exactly 0, where a mean would leave rounding
    x = x - x[:1, :]
    x = x - xp.mean(x, axis=0, keepdims=True)
    # CKA knows no scale, so the largest number may be 1: no power of it can overflow or vanish
    largest = xp.max(xp.abs(fixed(x)))
    x = x / xp.where(largest > 0, largest, xp.ones_like(largest))
    kernel = x @ xp.matrix_transpose(x)
    whole = xp.sum(fixed(kernel) ** 2)
    if unbiased:
        off = 1 - xp.eye(n, dtype=x.dtype, device=x.device)
        kernel = kernel * off
        sums = xp.sum(kernel, axis=0, keepdims=True) / (n - 2)
        mean = xp.sum(sums) / (2 * (n - 1))
        kernel = (kernel - (sums - mean) - xp.matrix_transpose(sums - mean)) * off
    energy = xp.sum(kernel**2)
    # One odd sample has a kernel whose U-centred form is rounding alone
    told = fixed(energy) > (n * xp.finfo(x.dtype).eps) ** 2 * whole
    root = xp.sqrt(xp.where(told, energy, xp.ones_like(energy)))
    return kernel * xp.where(told, 1 / root, xp.zeros_like(root))


@dataclass
class MeanCKA:
    """The mean over batches of `cka_matrix`: every batch counts the same, so give equal sizes.

    Batches are independent of each other, and the unbiased form does not depend on their size.
    """

    unbiased: bool = True
    batches: int = field(default=0, init=False)
    _total: AnyArray = field(default=None, init=False, repr=False)

    def add(self, features: Sequence[AnyArray]) -> None:
        """One batch: the features (n, ...) of every layer, in the same order each time."""
        found = fixed(cka_matrix(features, unbiased=self.unbiased))
        if self.batches and found.shape != self._total.shape:
            raise BadInput(
                f"a batch of {found.shape[0]} layers after batches of {self._total.shape[0]}: "
                "give the same layers each time"
            )
        self._total = found if self.batches == 0 else self._total + found
        self.batches += 1

    @property
    def mean(self) -> AnyArray:
        """The mean CKA of every two layers, an array (L, L)."""
        if self.batches == 0:
            raise BadInput("a mean CKA of no batches: add one first")
        return self._total / self.batches


def redtest_keep(
    values: Sequence[float], stages: Sequence[int], keep: int
) -> tuple[tuple[int, ...], ...]:
    """Which blocks CKA-guided pruning keeps: of the whole network, the `keep` of lowest CKA.

    values[l] is the CKA of block l's input and output; `stages` the number of blocks of each stage,
    in the order of `values`. Gives one tuple per stage, of indices within the stage. The earlier of
    equal blocks is kept. A stage may end up empty: whether it may go is for the caller to say.
    """
    if sum(stages) != len(values) or any(size < 1 for size in stages):
        raise BadInput(
            f"stages of {', '.join(map(str, stages))} blocks do not add up to {len(values)} values"
        )
    if not 0 <= keep <= len(values):
        raise BadInput(f"cannot keep {keep} of {len(values)} blocks")
    if any(value != value for value in values):
        raise BadInput("a CKA is NaN: look for NaN in the features it was computed from")
    kept = set(sorted(range(len(values)), key=lambda block: (values[block], block))[:keep])
    starts = [sum(stages[:stage]) for stage in range(len(stages))]
    return tuple(
        tuple(block for block in range(size) if start + block in kept)
        for start, size in zip(starts, stages, strict=True)
    )
