"""What became of wrong exports that were shown to the verifier."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal[
    "rejected", "equivalent", "drowned", "survived", "misjudged", "accepted", "refused"
]


@dataclass(frozen=True)
class Judgement:
    """What became of one mutant, and the rules that refused it.

    A wrong one is `rejected` for its own reason; refused for another it is `misjudged`, since what
    is malformed proves nothing. One that passed has `survived`, unless it changes nothing in this
    model, `equivalent`, or less than float32 may by its own rounding, `drowned`. A faithful one is
    `accepted` or `refused`.
    """

    mutant: str
    artifact: str
    verdict: Verdict
    rules: Sequence[str]
    reason: str

    @property
    def right(self) -> bool:
        return self.verdict not in ("survived", "misjudged", "refused")

    def __str__(self) -> str:
        by = f" by {', '.join(self.rules)}: {self.reason}" if self.reason else ""
        return f"{self.artifact}, {self.mutant}: {self.verdict}{by}"


def score(judged: Sequence[Judgement]) -> tuple[str, Counter[str]]:
    """The score in words, and the number of each verdict."""
    n: Counter[str] = Counter(one.verdict for one in judged)
    words = (
        f"{n['rejected']} of {n['rejected'] + n['survived'] + n['misjudged']} wrong exports "
        f"rejected, {n['accepted']} of {n['accepted'] + n['refused']} faithful ones accepted, "
        f"{n['equivalent']} changed nothing, {n['drowned']} less than rounding"
    )
    return words, n
