"""Wrong exports of one model, as tables, each with the reason for which it must be refused.

What a model has no place for (a kind of gelu where there is none) does not apply to it.
Shapes: N rows, F features, H units of a layer, O outputs.
"""

import io
import itertools
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from job.verify.files import MODEL_FILES
from job.verify.oracle import linear_layers
from job.verify.reference import Reference
from job.verify.weights import weights_of

Array = NDArray[Any]
Weights = Mapping[str, Array]

ONNX, SCRIPT, PT2 = "model.onnx", "model.torchscript.pt", "model.pt2"

# Patterns of reasons, in the verifier's own words.
WEIGHTS = "holds other values in"
NUMBERS = (
    r"outside the bound|times what rounding can give|times the trained model's own|"
    r"are of another class|: row \d+ is \S+, not \S+$"
)
SHAPE = "the answer has shape"
SIGNATURE = "the signature is"


class Mutant(NamedTuple):
    """One file's changed bytes, and the pattern of its reason: empty where it is still right."""

    name: str
    artifact: str
    content: bytes
    reason: str


# Numbers that a file holds. ---------------------------------------------------------------------


def _on(names: str, edit: Callable[[Array], Any]) -> Callable[[Weights], Weights]:
    """`edit` on all tensors whose names match. A linear model's one layer is its first."""

    def change(weights: Weights) -> Weights:
        layers = linear_layers(weights)
        place = {layers[-1]: "last", layers[0]: "first"}
        kinds = {name: name.rpartition(".") for name in weights}
        called = {name: f"{place.get(at, at)}.{kind}" for name, (at, _, kind) in kinds.items()}
        return {n: edit(v.copy()) for n, v in weights.items() if re.fullmatch(names, called[n])}

    return change


def _largest(edit: Callable[[Any], Any]) -> Callable[[Array], Array]:
    def change(values: Array) -> Array:
        at = np.unravel_index(np.abs(values).argmax(), values.shape)
        values[at] = edit(values[at])
        return values

    return change


def _bfloat16(values: Array) -> Array:
    rounded: Array = ((values.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)
    return rounded


def _int8(values: Array) -> Array:
    step = np.abs(values).max() / 127 or 1.0
    rounded: Array = np.round(values / step) * step
    return rounded


def _moved(values: Array) -> Array:
    draw = np.random.Generator(np.random.Philox(0))
    moved: Array = values + 1e-3 * np.abs(values).mean() * draw.standard_normal(values.shape)
    return moved


def _transposed(weights: Weights) -> Weights:
    square = [n for n, v in weights.items() if v.ndim == 2 and v.shape[0] == v.shape[1]]
    return {name: weights[name].T for name in square[:1]}


def _layers_swapped(weights: Weights) -> Weights:
    names = [f"{layer}.weight" for layer in linear_layers(weights)]
    pairs = [(a, b) for a, b in itertools.pairwise(names) if weights[a].shape == weights[b].shape]
    return {name: weights[other] for a, b in pairs[:1] for name, other in ((a, b), (b, a))}


# In every file that holds weights, and in ONNX alone.
WEIGHT_CHANGES: dict[str, Callable[[Weights], Weights]] = {
    "one weight off by 1e-3": _on("first.weight", _largest(lambda w: w * 1.001)),
    "the last bit of one weight": _on("first.weight", _largest(lambda w: np.nextafter(w, 0 * w))),
    "biases dropped": _on("first.bias", np.zeros_like),
    "weights of permuted columns": _on("first.weight", lambda v: v[:, ::-1]),
    "weights of another step": _on(r".*\.(weight|bias)", _moved),
}
MORE_WEIGHT_CHANGES: dict[str, Callable[[Weights], Weights]] = {
    "one weight off by 1e-4": _on("first.weight", _largest(lambda w: w * 1.0001)),
    "one weight off by 1e-2": _on("first.weight", _largest(lambda w: w * 1.01)),
    "one weight off by 1e-1": _on("first.weight", _largest(lambda w: w * 1.1)),
    "one last weight off by 1e-4": _on("last.weight", _largest(lambda w: w * 1.0001)),
    "one last weight off by 1e-3": _on("last.weight", _largest(lambda w: w * 1.001)),
    "one last weight off by 1e-2": _on("last.weight", _largest(lambda w: w * 1.01)),
    "one weight of another sign": _on("first.weight", _largest(np.negative)),
    "one weight left out": _on("first.weight", _largest(np.zeros_like)),
    "one weight not a number": _on("first.weight", _largest(lambda w: w * np.nan)),
    "last biases dropped": _on("last.bias", np.zeros_like),
    "biases of another sign": _on(r".*\.bias", np.negative),
    "weights as float16": _on(r".*\.(weight|bias)", np.float16),
    "weights as bfloat16": _on(r".*\.(weight|bias)", _bfloat16),
    "weights as int8": _on(r".*\.weight", _int8),
    "units in another order": _on("first.weight", lambda v: v[::-1]),
    "a unit dropped": _on("first.weight", lambda v: np.vstack([0 * v[:1], v[1:]])),
    "a feature ignored": _on("first.weight", lambda v: np.hstack([0 * v[:, :1], v[:, 1:]])),
    "a weight transposed": _transposed,
    "two layers swapped": _layers_swapped,
    "mean of the inputs left out": _on("input.mean", np.zeros_like),
    "deviation of the inputs left out": _on("input.std", np.ones_like),
    "variance for deviation": _on("input.std", np.square),
    "mean of the targets left out": _on("output.mean", np.zeros_like),
    "deviation of the targets left out": _on("output.std", np.ones_like),
}

# The ONNX graph. --------------------------------------------------------------------------------

# By the tensor whose place y takes, x being the tensor itself. A program may name tensors, weights
# and `_values`, and hold numbers.
_FLOAT16 = "a = Cast <to = 10> (x)  y = Cast <to = 1> (a)"
_BFLOAT16 = "a = Cast <to = 16> (x)  y = Cast <to = 1> (a)"
_REVERSED = "y = Slice(x, [-1], [-9223372036854775807], [{axis}], [-1])"
_ROWS = "n = Shape <start = 0, end = 1> (x)  m = Squeeze(n)  row = Range(0, m, 1)  "
GRAPH_CHANGES = {
    "input": {
        "input columns reversed": _REVERSED.format(axis=1),
        "magnitude of the inputs": "y = Abs(x)",
        "negative inputs as zero": "y = Relu(x)",
        "inputs clipped to those seen": "a = Max(x, least)  y = Min(a, most)",
        "NaN for outliers": "a = Abs(x)  b = Greater(a, far)  y = Where(b, NaN, x)",
        "the mean for NaN": 'a = IsNaN(x)  y = Where(a, "input.mean", x)',
        "a number for infinity": "a = IsInf(x)  y = Where(a, far, x)",
        "inputs as float16": _FLOAT16,
        "inputs as bfloat16": _BFLOAT16,
    },
    "standardised": {
        "inputs not standardised": "y = Identity(input)",
        "inputs standardised twice": 'a = Sub(x, "input.mean")  y = Div(a, "input.std")',
        "the batch's own mean": "a = ReduceMean(x, [0])  y = Sub(x, a)",
        "dropout left on": "y = Dropout <seed = 1> (x, 0.5, true)",
    },
    "hidden": {
        "activation left out": "y = Identity(linear)",
        "hidden units as float16": _FLOAT16,
        "hidden units as bfloat16": _BFLOAT16,
    },
    "targets": {
        "not in the target's units": "y = Identity(logits)",
        "in the target's units twice": 'a = Mul(x, "output.std")  y = Add(a, "output.mean")',
    },
    "probabilities": {
        "softmax left out": "y = Identity(logits)",
        "softmax twice": "y = Softmax <axis = 1> (x)",
        "softmax over the batch": "y = Softmax <axis = 0> (logits)",
        "logarithms": "y = LogSoftmax <axis = 1> (logits)",
        "classes in reverse": _REVERSED.format(axis=1),
        "classes off by one": "a = Slice(x, [1], [9999], [1])  b = Slice(x, [0], [1], [1])  "
        "y = Concat <axis = 1> (a, b)",
        "the class alone": "y = Hardmax <axis = 1> (x)",
    },
    "output": {
        "two rows for all": _ROWS + "a = Mod(row, 2)  y = Gather <axis = 0> (x, a)",
        "large batches cut off": _ROWS
        + "a = Less(row, most_rows)  b = Unsqueeze(a, [1])  y = Where(b, x, 0.0)",
        "rows in reverse": _REVERSED.format(axis=0),
        "neighbours mixed in": "a = ReduceMean(x, [0])  b = Mul(a, 1e-3)  y = Add(x, b)",
        "answers clipped to those seen": "a = Max(x, low)  y = Min(a, high)",
        "a number for NaN": "a = IsNaN(x)  y = Where(a, 0.0, x)",
        "answers as float16": _FLOAT16,
        "answers as bfloat16": _BFLOAT16,
        "answers larger by 1e-4": "y = Mul(x, 1.0001)",
        "answers moved": "y = Add(x, spread)",
        "noise": "a = RandomNormalLike <seed = 1.0> (x)  b = Mul(a, spread)  y = Add(x, b)",
        "one answer for all": "a = Shape(x)  y = Expand(low, a)",
    },
}
# In the place of the activation: the others, and forms of its own that are nearly right.
ACTIVATIONS = {
    "relu": "y = Relu(linear)",
    "leaky_relu": "y = LeakyRelu <alpha = 0.01> (linear)",
    "gelu": "a = Mul(linear, 0.70710678)  b = Erf(a)  c = Add(b, 1.0)  d = Mul(linear, 0.5)  "
    "y = Mul(c, d)",
    "silu": "a = Sigmoid(linear)  y = Mul(linear, a)",
    "tanh": "y = Tanh(linear)",
}
NEARLY = {
    "relu": "y = LeakyRelu <alpha = 0.0001> (linear)",
    "leaky_relu": "y = LeakyRelu <alpha = 0.011> (linear)",
    "gelu": "a = Mul(linear, linear)  b = Mul(a, 0.044715)  c = Add(b, 1.0)  d = Mul(c, linear)  "
    "e = Mul(d, 0.7978845608)  f = Tanh(e)  g = Add(f, 1.0)  h = Mul(g, linear)  y = Mul(h, 0.5)",
    "silu": "a = HardSigmoid <alpha = 0.1666667> (linear)  y = Mul(linear, a)",
    "tanh": "a = Max(linear, -1.0)  y = Min(a, 1.0)",
}


class Declared(NamedTuple):
    """A program as above, and a pattern with its replacement in the text of the model around it."""

    at: str
    program: str
    pattern: str
    text: str
    reason: str = SIGNATURE


_SAME = "y = Identity(x)"
_TYPE = r'(?s)({} \{{\s+name: "{}".*?elem_type: )1'
_IN, _OUT = (_TYPE.format(side, side) for side in ("input", "output"))
_LAST_AXIS = r'(?s)(output \{\s+name: "output".*?"batch"\s+\})\s+dim \{.*?\}'
_MORE = 'node { op_type: "Identity" input: "output" output: "more" } output { name: "more" type '
_MORE += "{ tensor_type { elem_type: 1 } } } name:"
_STRANGE = 'initializer { name: "more" data_type: 1 dims: 1 '
_OUTSIDE = 'data_location: EXTERNAL external_data { key: "location" value: "x" } } name:'
DECLARED = {
    "batch fixed inside": Declared(
        "standardised", "y = Reshape(x, [2, -1])", "^", "", f"cannot be run|{SHAPE}"
    ),
    "batch axis fixed at 2": Declared("output", _SAME, 'dim_param: "batch"', "dim_value: 2"),
    "batch axis fixed at 1": Declared("output", _SAME, 'dim_param: "batch"', "dim_value: 1"),
    "batch axis of another name": Declared("output", _SAME, '"batch"', '"s77"'),
    "input of another name": Declared("output", _SAME, '"input"', '"x"'),
    "output of another name": Declared("input", _SAME, '"output"', '"y"'),
    "float64 answers": Declared("output", "y = Cast <to = 11> (x)", _OUT, r"\g<1>11"),
    "float16 answers": Declared("output", "y = Cast <to = 10> (x)", _OUT, r"\g<1>10"),
    "float64 inputs": Declared("input", "y = Cast <to = 1> (x)", _IN, r"\g<1>11"),
    "float16 inputs": Declared("input", "y = Cast <to = 1> (x)", _IN, r"\g<1>10"),
    "answers flattened": Declared("output", "y = Reshape(x, [-1])", _LAST_AXIS, r"\1"),
    "answers flattened in secret": Declared("output", "y = Reshape(x, [-1])", "^", "", SHAPE),
    "a second output": Declared("output", _SAME, r"(?m)^  name:", _MORE),
    "a weight too many": Declared(
        "output", _SAME, "(?m)^  name:", _STRANGE + "float_data: 1.0 } name:", "holds more, which"
    ),
    "a weight outside the file": Declared(
        "output", _SAME, "(?m)^  name:", _STRANGE + _OUTSIDE, "weights lie outside"
    ),
}

# The code of torch archives: file, name, pattern, text, reason. ----------------------------------

_ACTIVATION = rb"\b(?:relu|leaky_relu|gelu|silu|tanh)"
_ENTER = rb"\(input\)\.forward\(x, \)"
_RETURN = rb"return (\(output\)\.forward\(\w+, \))"
CODE_CHANGES = [
    (SCRIPT, "another activation", _ACTIVATION + rb"\((\w+)[^)]*\)", rb"sigmoid(\1)", NUMBERS),
    (SCRIPT, "inputs not standardised", _ENTER, b"x", NUMBERS),
    (SCRIPT, "input columns reversed", _ENTER, b"(input).forward(torch.flip(x, [1]), )", NUMBERS),
    (SCRIPT, "a number for NaN", _RETURN, rb"return torch.nan_to_num(\1)", NUMBERS),
    (SCRIPT, "answers flattened", _RETURN, rb"return torch.flatten(\1)", SHAPE),
    (SCRIPT, "float64 answers", _RETURN, rb"return torch.to(\1, 7)", "the answer has type float64"),
    (SCRIPT, "the traced rows alone", _RETURN, rb"return torch.slice(\1, 0, 0, 2)", SHAPE),
    (SCRIPT, "softmax over the batch", rb"(torch\.softmax\(\w+), 1", rb"\1, 0", NUMBERS),
    (PT2, "another activation", _ACTIVATION + rb"\.default", b"sigmoid.default", NUMBERS),
    (PT2, "mean added", rb"aten\.sub\.Tensor", b"aten.add.Tensor", NUMBERS),
    (PT2, "multiplied by the deviation", rb"aten\.div\.Tensor", b"aten.mul.Tensor", NUMBERS),
]

# One or two of each kind, the more harmful ones: what a short self-test makes of ONNX.
TELLING = {
    *("weights written back", "nothing done at output"),
    *(
        "one weight off by 1e-3",
        "the last bit of one weight",
        "biases dropped",
        "weights as float16",
    ),
    *("weights of permuted columns", "inputs not standardised", "mean of the inputs left out"),
    *("activation left out", *(f"nearly {name}" for name in ACTIVATIONS), "dropout left on"),
    *("not in the target's units", "softmax left out", "answers as float16", "noise"),
    *("two rows for all", "large batches cut off", "rows in reverse", "neighbours mixed in"),
    *("a number for NaN", "NaN for outliers"),
    *("batch fixed inside", "batch axis fixed at 2", "float64 answers", "output of another name"),
}


# Making them. -----------------------------------------------------------------------------------


def mutants(files: Mapping[str, bytes], reference: Reference) -> Iterator[Mutant]:
    """Every mutant of these model files and goldens; first what went through these hands unharmed.

    What the files say is read with what is installed; without torch its archives are left out.
    """
    held = {a: w for a in MODEL_FILES if a in files and (w := weights_of(a, files[a])) is not None}
    for artifact, weights in held.items():
        content = _with_weights(artifact, files[artifact], weights, {})
        yield Mutant("weights written back", artifact, content, "")
    for name, row in _graph_changes(reference.activation):
        made = _with_program(files[ONNX], row, reference)
        if made is not None:
            yield Mutant(name, ONNX, made, row.reason)
    for artifact, weights in held.items():
        table = WEIGHT_CHANGES | (MORE_WEIGHT_CHANGES if artifact == ONNX else {})
        for name, change in table.items():
            with np.errstate(all="ignore"):
                changed = change(weights)
            if changed:
                content = _with_weights(artifact, files[artifact], weights, changed)
                yield Mutant(name, artifact, content, f"{WEIGHTS}|{NUMBERS}")
    for artifact, name, pattern, text, reason in CODE_CHANGES:
        if artifact in held and (made := _with_code(files[artifact], pattern, text)) is not None:
            yield Mutant(name, artifact, made, reason)
    for artifact in [name for name in files if name not in MODEL_FILES]:
        flipped = bytearray(files[artifact])
        flipped[-4] ^= 1  # both layouts end with the last number
        yield Mutant("the last bit of the last number", artifact, bytes(flipped), "differs")


def _graph_changes(own: str) -> Iterator[tuple[str, Declared]]:
    for at in ("input", "standardised", "linear", "hidden", "logits", "output"):
        yield f"nothing done at {at}", Declared(at, _SAME, "^", "", "")
    others = {f"{name} for {own}": ACTIVATIONS[name] for name in ACTIVATIONS if name != own}
    here = {"hidden": GRAPH_CHANGES["hidden"] | others | {f"nearly {own}": NEARLY[own]}}
    for at, programs in (GRAPH_CHANGES | here).items():
        for name, program in programs.items():
            yield name, Declared(at, program, "^", "", NUMBERS)
    yield from DECLARED.items()


def _with_weights(artifact: str, content: bytes, weights: Weights, changed: Weights) -> bytes:
    """The file with other numbers of the same shapes under the names in `changed`."""
    new = {name: np.asarray(changed.get(name, v), np.float32) for name, v in weights.items()}
    if artifact == ONNX:
        model = onnx.load_model_from_string(content)
        for weight in model.graph.initializer:
            weight.CopyFrom(onnx.numpy_helper.from_array(new[weight.name], weight.name))
        return bytes(model.SerializeToString())
    if artifact == "model.safetensors":
        start = 8 + int.from_bytes(content[:8], "little")
        return content[:start] + b"".join(values.tobytes() for values in new.values())
    swap = {weights[name].tobytes(): new[name].tobytes() for name in changed}
    return _archive(content, "/data/", lambda entry: swap.get(entry, entry))


def _with_code(content: bytes, pattern: bytes, text: bytes) -> bytes | None:
    """The archive with its code changed, or None where the pattern is not found."""
    changed = _archive(content, r"\.py$|model\.json$", lambda entry: re.sub(pattern, text, entry))
    return changed if changed != _archive(content, "", lambda entry: entry) else None


def _archive(content: bytes, names: str, edit: Callable[[bytes], bytes]) -> bytes:
    """The archive with the entries whose names match edited."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as changed:
        for name in archive.namelist():
            entry = archive.read(name)
            changed.writestr(
                zipfile.ZipInfo(name), edit(entry) if re.search(names, name) else entry
            )
    return buffer.getvalue()


def _with_program(content: bytes, row: Declared, reference: Reference) -> bytes | None:
    """The ONNX file with the row's change, or None if it names what this model has not."""
    model = onnx.load_model_from_string(content)
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    del model.graph.value_info[:]  # shapes and types that need no longer hold
    tensors, values = _tensors(model.graph), _values(reference)
    if row.at not in tensors:
        return None
    tensor = tensors[row.at]
    # Nothing in the graph makes the input: not its maker is turned to another name but its readers.
    old, new = ("input", "input/y") if tensor == "input" else (f"{tensor}/x", tensor)
    names = {w.name: w.name for w in weights} | tensors | {"x": old, "y": new}
    program: list[onnx.NodeProto] = []
    for node in _parsed(row.program, values):
        for name in set(node.input) & values.keys() - names.keys():
            names[name] = f"mutant/{name}"
            value = onnx.numpy_helper.from_array(values[name])
            program.append(onnx.helper.make_node("Constant", [], [names[name]], value=value))
        if not names.keys() >= set(node.input):
            return None
        names |= {name: f"mutant/{name}" for name in node.output if name != "y"}
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        program.append(node)
    nodes = list(model.graph.node)
    at = 0
    for index, node in enumerate(nodes):
        if tensor == "input":
            node.input[:] = [new if name == tensor else name for name in node.input]
        elif tensor in node.output:
            node.output[:] = [old if name == tensor else name for name in node.output]
            at = index + 1
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *program, *nodes[at:]])
    text = re.sub(row.pattern, row.text, str(model))
    model = onnx.load_model_from_string(text, format="textproto")
    model.graph.initializer.extend(weights)
    return bytes(model.SerializeToString())


def _parsed(program: str, values: dict[str, Array]) -> list[onnx.NodeProto]:
    """The program's nodes; numbers that stand in it become `values`."""

    def named(literal: re.Match[str]) -> str:
        value, name = json.loads(literal[0]), f"c{len(values)}"
        values[name] = np.array(value, np.float32 if isinstance(value, float) else None)
        return name

    literal = r"(?<=[(,])( ?)(\[[-\d, ]+\]|-?\d[\d.e-]*|NaN|true)(?=[,)])"
    text = re.sub(literal, named, program)
    return list(onnx.parser.parse_graph(f"p (float x) => (float y) {{ {text} }}").node)


def _tensors(graph: onnx.GraphProto) -> dict[str, str]:
    """The names of this graph's tensors by what they are."""
    layers = [node for node in graph.node if node.op_type == "Gemm"]
    softmax = any(node.op_type == "Softmax" for node in graph.node)
    found = {"input": "input", "standardised": layers[0].input[0], "logits": layers[-1].output[0]}
    if len(layers) > 1:
        found |= {"linear": layers[0].output[0], "hidden": layers[1].input[0]}
    return found | {"output": "output", "probabilities" if softmax else "targets": "output"}


def _values(reference: Reference) -> dict[str, Array]:
    """Numbers of the golden rows that programs name."""
    x, y = reference.golden_input, reference.golden_output
    most_rows = np.array(max(reference.batches) // 2)
    # fmin and fmax pass over NaN, which stands for what is missing.
    least, most = np.fmin.reduce(x, axis=0), np.fmax.reduce(x, axis=0)
    far = 10 * np.fmax.reduce(np.abs(x), axis=None)
    seen = {"least": least, "most": most, "far": far}
    answered = {"low": y.min(axis=0), "high": y.max(axis=0), "spread": 1e-3 * y.std(axis=0)}
    return seen | answered | {"most_rows": most_rows}
