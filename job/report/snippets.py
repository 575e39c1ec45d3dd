"""A few lines that load a published model elsewhere, made for that very model."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# A row of more features is written as zeros, and what the model answers is not said.
MAX_FEATURES = 20


class _Language(NamedTuple):
    title: str
    row: str  # of its numbers
    zeros: str  # of their number
    comment: str
    code: str


_LANGUAGES = (
    _Language(
        "Python, with onnxruntime",
        "[{}]",
        "[0.0] * {}",
        "#",
        """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
rows = np.array([ROW], dtype=np.float32)  # (batch, FEATURES)
print(session.run(None, {"input": rows})[0])""",
    ),
    _Language(
        "C++, with libtorch",
        "std::vector<float>{{{}}}",
        "std::vector<float>({})",
        "//",
        """\
#include <torch/script.h>
#include <iostream>
#include <vector>

int main() {
  auto model = torch::jit::load("model.torchscript.pt");
  auto rows = torch::tensor(ROW).reshape({-1, FEATURES});
  std::cout << model.forward({rows}).toTensor() << std::endl;
}""",
    ),
    _Language(
        "JavaScript, with onnxruntime-node (in a browser: onnxruntime-web)",
        "Float32Array.of({})",
        "new Float32Array({})",
        "//",
        """\
import * as ort from "onnxruntime-node";

const session = await ort.InferenceSession.create("model.onnx");
const rows = new ort.Tensor("float32", ROW, [1, FEATURES]);
const { output } = await session.run({ input: rows });
console.log(output.data);""",
    ),
)


def snippets(
    signature: Mapping[str, Any], row: Sequence[float], answer: Sequence[float]
) -> list[dict[str, str]]:
    """Title and code for each language, for the manifest's `signature`.

    `row` (F,) are features and `answer` (O,) the model's answer to them.
    """
    (given,), (answered,) = signature["inputs"], signature["outputs"]
    kind = "classes" if "classes" in answered else "targets"
    notes = [f"{kind}: {_listed(answered[kind])}"]
    if len(row) <= MAX_FEATURES:
        notes = [f"answers {_numbers(answer)}", f"features: {_listed(given['features'])}", *notes]
    found = []
    for language in _LANGUAGES:
        if len(row) <= MAX_FEATURES:
            values = language.row.format(_wrapped(_numbers(row)))
        else:
            values = language.zeros.format(len(row))
        code = language.code.replace("ROW", values).replace("FEATURES", str(len(row)))
        lines = [f"{language.comment} {note}" for note in notes]
        found.append({"title": language.title, "code": "\n".join([code, *lines])})
    return found


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.9g}" for value in values)


def _wrapped(numbers: str) -> str:
    """Over several lines where one would be too long for a page."""
    if len(numbers) <= 40:
        return numbers
    return "\n" + textwrap.fill(numbers, 70, initial_indent="    ", subsequent_indent="    ") + "\n"


def _listed(names: Sequence[object]) -> str:
    """On one line, whatever is in the names: they stand in a comment."""
    return " ".join(", ".join(map(str, names)).split())
