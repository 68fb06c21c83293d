"""What a comparison of two executions found: the numbers, the verdict, and how people read both."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from soul_deploy.base import brief
from soul_deploy.base.tables import Shown, Table
from soul_deploy.equivalence.counts import CountDifference, CountMismatch
from soul_deploy.equivalence.spikes import LayerSpikes
from soul_deploy.equivalence.verdict import Verdict, untested, verdict_of

LOGIT_LIMIT = 1e-5
PRINTED = 10  # spike mismatches and problems in the text; the JSON has more
SUMMED = ("samples", "flipped_samples", "agreeing", "mismatches")  # over batches


@brief
@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found; `counted` says whether operation counts were compared.

    Without samples the check did not run.
    logit_difference: the largest on samples without a mismatch; logit_difference_flipped on others.
    logit_limit: what the first may be: 0 for fixed-point networks; of a membrane read-out, what
    follows from its equations, there where the difference is the largest share of it. Where scores
    are sums over time, all three are divided by T.
    agreeing: samples of the same class. differences: counts that flipped spikes changed.
    """

    samples: int = 0
    layers: tuple[LayerSpikes, ...] = ()
    logit_difference: float = 0.0
    logit_difference_flipped: float = 0.0
    logit_limit: float = LOGIT_LIMIT
    flipped_samples: int = 0
    agreeing: int = 0
    counted: bool = False
    mismatches: tuple[CountMismatch, ...] = ()
    differences: tuple[CountDifference, ...] = ()

    @property
    def passed(self) -> bool:
        """Spikes explained, logits within their limit where no spike differs, counts equal.

        That no difference was found; `Comparison.verdict` says whether that proves something.
        """
        close = self.logit_difference <= self.logit_limit  # false for a NaN
        return close and self.counts_agree and all(layer.passed for layer in self.layers)

    @property
    def logit_share(self) -> float:
        """The largest difference as a share of its limit; infinite for a NaN."""
        if not self.logit_limit:
            return math.inf if self.logit_difference else 0.0
        share = self.logit_difference / self.logit_limit
        return math.inf if math.isnan(share) else share

    @property
    def counts_agree(self) -> bool:
        """Counts are what the spikes say, and flipped spikes explain every difference exactly."""
        explained = all(d.is_explained for d in self.differences)
        return not self.mismatches and explained

    @property
    def spikes_compared(self) -> bool:
        """Whether the other execution showed its spikes."""
        return all(layer.compared for layer in self.layers)

    @property
    def flipped(self) -> int:
        return sum(layer.flipped for layer in self.layers)

    @property
    def unexplained(self) -> int:
        return sum(layer.unexplained for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON data; infinities and NaN are null."""
        data = asdict(self) | {"passed": self.passed, "flipped": self.flipped}
        found: dict[str, Any] = _finite(data | {"unexplained": self.unexplained})
        return found

    def __add__(self, other: "CheckResult") -> "CheckResult":
        if not self.samples:
            return other
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in SUMMED}
        combined: Any = {name: a + b for name, (a, b) in pairs.items()}
        worse = max(self, other, key=lambda check: check.logit_share)
        combined |= {name: getattr(worse, name) for name in ("logit_difference", "logit_limit")}
        flipped = self.logit_difference_flipped, other.logit_difference_flipped
        combined["logit_difference_flipped"] = float(np.maximum(*flipped))  # NaN if either is
        return CheckResult(
            layers=tuple(a + b for a, b in zip(self.layers, other.layers, strict=True)),
            counted=self.counted or other.counted,
            differences=_joined(self.differences + other.differences),
            **combined,
        )


def _joined(differences: tuple[CountDifference, ...]) -> tuple[CountDifference, ...]:
    """One entry per layer and count."""
    found: dict[tuple[str, str], CountDifference] = {}
    for item in differences:
        key = (item.layer, item.count)
        found[key] = found[key] + item if key in found else item
    return tuple(found.values())


def _finite(value: Any) -> Any:
    """JSON has no infinities: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@brief
@dataclass(frozen=True, kw_only=True)
class Comparison(Shown):
    """Both checks on one pair of networks: each layer on given inputs, and both end to end.

    forced has no samples where the other execution has no layers to run.

    time_steps: T of both networks. allow_silent: populations may stay silent.
    """

    forced: CheckResult
    end_to_end: CheckResult
    time_steps: int
    allow_silent: bool = False

    @property
    def verdict(self) -> Verdict:
        """Inconclusive where nothing differs but a population of the reference never fired."""
        agree = self.forced.passed and self.end_to_end.passed
        return verdict_of(
            agree, self.end_to_end.samples, self.silent, allow_silent=self.allow_silent
        )

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASSED

    @property
    def silent(self) -> tuple[str, ...]:
        """Populations of which no neuron of the reference ever fired: nothing is known of them."""
        return tuple(layer.layer for layer in self.end_to_end.layers if layer.silent)

    def parts(self) -> list[Table | str]:
        """Spikes by layer, a line for each check and finding, the verdict."""
        forced, whole = check_lines(self)
        same = f"Same: {verdict_text(self.verdict, self.silent)}"
        return [spikes_table(self), *forced, *whole, same]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON data."""
        return {
            "verdict": self.verdict.value,
            "passed": self.passed,
            "time_steps": self.time_steps,
            "logit_limit": self.end_to_end.logit_limit,
            "forced": self.forced.to_dict() if self.forced.samples else None,
            "end_to_end": self.end_to_end.to_dict(),
            "silent_layers": list(self.silent),
            "allow_silent": self.allow_silent,
        }


def spikes_table(found: Comparison) -> Table:
    """A row for each population."""
    columns = ["layer", "neurons", "firing rate", "spikes", "flips forced"]
    columns += ["flips end to end", "spikes differing", "unexplained"]
    forced = {layer.layer: layer for layer in found.forced.layers}
    rows = [_spikes_row(found, forced.get(layer.layer), layer) for layer in found.end_to_end.layers]
    return Table("Spikes", columns, rows)


def _spikes_row(
    found: Comparison, alone: LayerSpikes | None, chained: LayerSpikes
) -> tuple[object, ...]:
    """alone: on given inputs, if the layers were run alone."""
    compared = chained.compared
    unexplained = chained.unexplained + (alone.unexplained if alone else 0)
    return (
        chained.layer,
        chained.neurons,
        f"{chained.golden_spikes / (chained.neurons * chained.samples * found.time_steps):.2%}",
        chained.golden_spikes,
        alone.flipped if alone else "-",
        chained.flipped if compared else "-",
        chained.differing if compared else "-",
        unexplained if alone or compared else "-",
    )


def check_lines(found: Comparison) -> tuple[list[str], list[str]]:
    """Of each of the two checks: a line of totals, then the first things that it found.

    A check that did not run has no lines.
    """
    forced, whole = found.forced, found.end_to_end
    counts = "not counted by this engine"
    if forced.counted:
        counts = f"{len(forced.mismatches) or 'no'} counts differ"
    alone = (
        f"layer by layer: {passed_text(forced.passed)}, {forced.flipped} flips, "
        f"{forced.unexplained} unexplained, {counts}, {_logits_text(forced)}"
    )
    spikes = (
        f"{whole.flipped} flips on {whole.flipped_samples} samples, {whole.unexplained} unexplained"
    )
    chained = (
        f"end to end: {passed_text(whole.passed)}, same class on {whole.agreeing} of "
        f"{whole.samples} samples, {spikes if whole.spikes_compared else 'spikes not compared'}, "
        f"{_counts_text(whole)}, {_logits_text(whole)}"
        f"{' on samples without a flip' if whole.logit_limit else ''}"
    )
    silent = [f"Never spiked on these images: {', '.join(found.silent)}"] if found.silent else []
    by_layer = [alone, *_findings(forced)] if forced.samples else []
    return by_layer, [chained, *_findings(whole), *silent]


def _logits_text(found: CheckResult) -> str:
    if found.logit_limit:
        return f"logits within {found.logit_difference:.2g}"
    same = "equal" if not found.logit_difference else f"differ by {found.logit_difference:.2g}"
    return f"logits {same} (integers: no tolerance)"


def _findings(found: CheckResult) -> Iterator[str]:
    yield from first_lines(found.mismatches)
    yield from first_lines(found.differences)
    flips = [flip for layer in found.layers for flip in layer.flips]
    ordered = sorted(flips, key=lambda flip: (flip.explained, flip.cause is not None))
    yield from first_lines(ordered)


def first_lines(items: Iterable[object]) -> Iterator[str]:
    """The first PRINTED of them, a line each, and how many more there are."""
    listed = [f"  {item}" for item in items]
    yield from listed[:PRINTED]
    if len(listed) > PRINTED:
        yield f"  and {len(listed) - PRINTED} more"


def verdict_text(verdict: Verdict, silent: Sequence[str]) -> str:
    """The last line's words; silent: populations that never fired."""
    if verdict is Verdict.FAILED:
        return "NO"
    word = "yes;" if verdict is Verdict.PASSED else "inconclusive:"
    return f"{word} {untested(silent)}" if silent else word.rstrip(";:")


def _counts_text(whole: CheckResult) -> str:
    """Counts of an execution against those of its own spikes, and against the reference's."""
    if not whole.counted:
        return "not counted by this engine"
    wrong = len(whole.mismatches) + sum(not d.is_explained for d in whole.differences)
    if wrong:
        return f"{wrong} counts differ"
    if whole.differences:
        return "counts differ by the fan-out of what flipped, exactly"
    return "no counts differ"


def passed_text(passed: bool) -> str:
    """The word for a check's outcome."""
    return "passed" if passed else "FAILED"
