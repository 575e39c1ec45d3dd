"""The gates that a model must pass before it is exported."""

from collections.abc import Mapping

from job.config import Gate
from job.errors import QualityUnmet


def require_quality(gates: Mapping[str, Gate], metrics: Mapping[str, float | None]) -> None:
    """Holds the test metrics against the gates of `quality.metrics`.

    Raises:
        QualityUnmet: a metric missed its gate, or is not known; it names them all, with numbers.
    """
    unmet = [
        f"{name} is {'unknown' if metrics[name] is None else format(metrics[name], '.6g')} and "
        f"must be {gate}"
        for name, gate in gates.items()
        if not gate.passes(metrics[name])
    ]
    if unmet:
        raise QualityUnmet(f"the model misses a quality gate: test {'; test '.join(unmet)}")
