"""What published files are held against: the trained weights, golden rows, the model's answers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError
from job.verify.battery import MAX_BATCH, Case, cases
from job.verify.compare import relative_error
from job.verify.oracle import ACTIVATIONS, TASKS, Answer, Oracle, widths
from job.verify.weights import read_safetensors

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """The trained model as numbers. Shapes: G golden rows, F features, O outputs.

    `answers` are the trained model's own, in the process and on the device that trained it, one
    (N, O) for each case of the battery; none when a published folder is verified later.
    """

    weights: Mapping[str, Float32]
    activation: str
    batches: Sequence[int]
    golden_input: Float32  # (G, F)
    golden_output: Float32  # (G, O)
    answers: Sequence[Float32] = ()
    task: str = "regression"

    @classmethod
    def of_model(
        cls,
        weights: Mapping[str, Float32],
        activation: str,
        batches: Sequence[int],
        golden_input: Float32,
        answer: Callable[[Float32], Float32],
        task: str = "regression",
    ) -> "Reference":
        """The reference of a model in memory, which `answer` runs on any x (N, F)."""
        golden_output = answer(golden_input)
        answers = [answer(case.x) for case in cases(golden_input, batches)]
        return cls(weights, activation, batches, golden_input, golden_output, answers, task)

    def oracle(self) -> Oracle:
        """What every answer is held against."""
        return Oracle(self.weights, self.activation, self.task)

    @cached_property
    def expected(self) -> list[tuple[Case, Answer]]:
        """The golden rows, then every input of the battery, with what its answer is held against.

        Evaluated once, however many files are held against this reference.
        """
        oracle = self.oracle()
        goldens = Case("golden vectors", self.golden_input, complete=True)
        answer = oracle(goldens.x)
        rest = [
            (case, oracle(case.x) if case.golden_rows is None else answer.of_rows(case.golden_rows))
            for case in cases(self.golden_input, self.batches)
        ]
        return [(goldens, answer), *rest]

    @cached_property
    def torch_error(self) -> float:
        """The trained model's own error on the golden rows, to which every engine is held."""
        return relative_error(self.golden_output, self.expected[0][1])

    def check(self) -> None:
        """Seen before anything is run, where the numbers come from files.

        Raises:
            DataError: these are not the numbers of a model, or do not fit together.
        """
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise DataError(f"{self.activation!r} is not an activation")
        if self.task not in TASKS:
            raise DataError(f"{self.task!r} is not a task")
        sizes = isinstance(self.batches, list) and self.batches
        if not sizes or not all(type(n) is int and 1 <= n <= MAX_BATCH for n in sizes):
            raise DataError(f"{self.batches!r} are not batch sizes from 1 to {MAX_BATCH}")
        columns = widths(self.weights, self.task)
        rows = self.golden_input.shape[:1]
        for golden, width in ((self.golden_input, columns[0]), (self.golden_output, columns[-1])):
            if golden.shape != (*rows, width) or golden.size == 0:
                raise DataError(f"the golden vectors are {golden.shape}, not rows of {width}")

    def save(self, path: Path) -> None:
        """Writes a safetensors file, and a JSON file beside it, for the verifying process."""
        from safetensors.numpy import save

        tensors = {f"weight/{name}": value for name, value in self.weights.items()}
        tensors |= {"golden/input": self.golden_input, "golden/output": self.golden_output}
        tensors |= {f"answer/{i}": value for i, value in enumerate(self.answers)}
        # Not the library's save_file: where the disk is full its error is no OSError.
        path.write_bytes(save({k: np.ascontiguousarray(v) for k, v in tensors.items()}))
        facts = {"activation": self.activation, "batches": list(self.batches), "task": self.task}
        path.with_suffix(".json").write_text(json.dumps(facts))

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """What `save` wrote to `path`."""
        tensors = read_safetensors(path.read_bytes())
        facts = json.loads(path.with_suffix(".json").read_text())
        count = sum(name.startswith("answer/") for name in tensors)
        return cls(
            weights={
                name.removeprefix("weight/"): value
                for name, value in tensors.items()
                if name.startswith("weight/")
            },
            activation=facts["activation"],
            batches=facts["batches"],
            golden_input=tensors["golden/input"],
            golden_output=tensors["golden/output"],
            answers=[tensors[f"answer/{i}"] for i in range(count)],
            task=facts["task"],
        )
