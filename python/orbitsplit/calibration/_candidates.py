"""Candidate codecs at a cut, and the selection of those on the convex hull."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from orbitsplit._codebook.codebook import CodebookEntry, CodebookLevel
from orbitsplit._codebook.halves import MATRICES, stored
from orbitsplit._codebook.inverses import INVERSE_FOLLOWS
from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._codec.codecs import Codec
from orbitsplit._io.validation import quoted

from ._distill import distill
from ._fit import STATISTICAL, Fitted, finish, fit, geometry, start_of
from ._mask import learn_mask
from ._measure import CutDownstream, transmit
from ._numbers import CodecNumbers
from ._statistics import SAMPLE_ROWS, CutStatistics
from ._training import Training

# The arrays that all levels of a statistical kind share at one cut. Training leaves the matrices of klt as they are.
_SHARED = {**dict.fromkeys(STATISTICAL, ("shift", *MATRICES)), "trained": MATRICES}

# Kinds that are trained through the frozen model, level by level.
TRAINED = ("mask", "trained")
KINDS = (*STATISTICAL, *TRAINED)

_MASK_STEPS, _DISTILL_STEPS = 200, 200


@dataclass(frozen=True, slots=True)
class Candidate:
    """A measured entry of a codebook, and its arrays by the names of their tensors."""

    entry: CodebookEntry
    tensors: dict[str, npt.NDArray[Any]]

    @property
    def has_matrix(self) -> bool:
        """Whether encoding multiplies rows by a matrix, which is slower."""
        return "matrix" in self.entry.arrays


def check_codecs(codecs: Sequence[str]) -> None:
    """Raise `ValueError` for a kind of codec that cannot be calibrated, and for one that is given twice."""
    if not codecs:
        raise ValueError("there is no codec to calibrate")
    for name in codecs:
        if list(codecs).count(name) > 1:
            raise ValueError(f"codec {name} is given {list(codecs).count(name)} times")
        if name == "raw":
            raise ValueError("codec raw is lossless and available to every plan: leave it out")
        if name not in KINDS:
            try:
                Codec.parse(name)
            except ValueError as error:
                raise ValueError(
                    f"codec {quoted(name)} is neither {', '.join(KINDS)} nor a fixed one: {error}"
                ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The inputs of fitting codecs at one cut.

    `statistics` are None if all codecs are fixed. Trained codecs need `seed` and `fitted(level name)`, which returns
    the downstream model on the batches that are fitted to; it depends on the level because masks of earlier cuts
    precede it.
    """

    statistics: CutStatistics | None
    fitted: Callable[[str], CutDownstream]
    seed: int
    _geometries: dict[str, CodecNumbers] = field(default_factory=dict)

    def geometry(self, kind: str) -> CodecNumbers:
        """Return `geometry` of the statistics, computed once for all levels: klt takes two eigendecompositions."""
        assert self.statistics is not None
        if kind not in self._geometries:
            self._geometries[kind] = geometry(kind, self.statistics)
        return self._geometries[kind]


def candidates(
    codecs: Sequence[str], levels: Sequence[float], sources: Sources, downstream: CutDownstream
) -> Iterator[Candidate]:
    """Yield every codec at every level at the cut of `downstream`, measured on its batches."""
    for kind in codecs:
        if kind in KINDS:
            for bits in levels:
                yield _measure(f"{kind} {bits:g}", _make(kind, bits, sources), downstream, kind)
        else:
            yield _measure(kind, None, downstream, kind)


def _make(kind: str, bits: float, sources: Sources) -> Fitted:
    """Return the codec of a kind at one level. Raises `ValueError` for another kind than those of `KINDS`."""
    statistics = sources.statistics
    assert statistics is not None
    if kind in STATISTICAL:
        return fit(sources.geometry(kind), statistics.sample, bits)
    fitted = sources.fitted(f"{kind} {bits:g}")
    if kind == "mask":
        value_bits = 8 if bits >= 3 else 4  # at few bits, coarser values leave more bits for more of them
        training = Training(steps=_MASK_STEPS, learning_rate=0.03, seed=sources.seed)
        mask = learn_mask(fitted, bits=bits, value_bits=value_bits, training=training)
        return finish(mask.numbers, fitted.sample(SAMPLE_ROWS), bits, varies="threshold")
    if kind == "trained":
        start = start_of(sources.geometry("klt"), statistics.sample, bits)
        training = Training(steps=_DISTILL_STEPS, learning_rate=0.01, seed=sources.seed)
        distilled = distill(fitted, start, bits=bits, training=training)
        return finish(distilled.numbers, statistics.sample, bits, varies="step")
    raise ValueError(f"codec {quoted(kind)} is not calibrated, those are {', '.join(KINDS)}")


def _measure(name: str, fitted: Fitted | None, downstream: CutDownstream, kind: str) -> Candidate:
    codec: CalibratedCodec | str = kind
    if fitted is not None:
        codec = CalibratedCodec(codebook=1, cut=downstream.cut, **fitted.scalars, **fitted.arrays)  # type: ignore[arg-type]
    sent = [transmit(downstream.sent(index), codec) for index in range(downstream.batches)]
    elements = sum(one.received.numel() for one in sent)
    loss, error = downstream.loss([one.received for one in sent])
    level = CodebookLevel(
        name=name,
        bits_per_element=8 * sum(one.frame_bytes for one in sent) / elements,
        loss=max(0.0, loss),  # rounding may go below
        loss_error=error,
        encode_s_per_byte=sum(one.encode_s for one in sent) / (4 * elements),
        decode_s_per_byte=sum(one.decode_s for one in sent) / (4 * elements),
    )
    if not np.isfinite(loss):
        raise ValueError(f"outputs are not finite with {name} at cut {downstream.cut}")
    if fitted is None:
        return Candidate(CodebookEntry(level=level, codec=kind), {})
    return _stored(level, fitted, f"cut{downstream.cut}", kind)


def _stored(level: CodebookLevel, fitted: Fitted, prefix: str, kind: str) -> Candidate:
    """Return the candidate with its arrays as files have them; an inverse that follows from the matrix is left out."""
    scalars: dict[str, Any] = dict(fitted.scalars)
    arrays = dict(fitted.arrays)
    if fitted.inverse_follows:
        scalars[INVERSE_FOLLOWS] = True
        del arrays["inverse"]
    shared, owner = _SHARED.get(kind, ()), "klt" if kind == "trained" else kind
    names = {part: f"{prefix}.{owner if part in shared else level.name}.{part}" for part in arrays}
    tensors = {names[part]: stored(part, array) for part, array in arrays.items()}
    return Candidate(CodebookEntry(level=level, scalars=scalars, arrays=names), tensors)


def worth_keeping(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates on the lower convex hull of loss over bits, or above it by at most their standard error.

    Without that tolerance the noise of a few rows of text leaves gaps between the levels. Dominated candidates, with
    more bits and no smaller loss than another, are dropped. Candidates with a matrix have a hull of their own: they
    need fewer bits and more time, and the links decide which is better. Ties are broken by the order of `found`.
    """
    return [c for matrix in (False, True) for c in _near_hull([c for c in found if c.has_matrix == matrix])]


def best_first(found: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates by increasing loss."""
    return sorted(found, key=lambda c: (c.entry.level.loss, -c.entry.level.bits_per_element))


def _near_hull(found: Sequence[Candidate]) -> list[Candidate]:
    better: list[Candidate] = []
    for candidate in sorted(found, key=_point):
        if not better or candidate.entry.level.loss < better[-1].entry.level.loss:
            better.append(candidate)
    if not better:
        return []
    hull: list[tuple[float, float]] = []
    for point in map(_point, better):
        while len(hull) > 1 and not _turns(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    bits, losses = zip(*hull, strict=True)
    return [
        candidate
        for candidate in better
        if candidate.entry.level.loss - candidate.entry.level.loss_error
        <= np.interp(candidate.entry.level.bits_per_element, bits, losses)
    ]


def _point(candidate: Candidate) -> tuple[float, float]:
    return candidate.entry.level.bits_per_element, candidate.entry.level.loss


def _turns(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Say whether b lies below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) < (c[1] - a[1]) * (b[0] - a[0])
