"""python predict.py PUBLISHED_FOLDER [FEATURE ...]: golden vectors, then the answer to a row."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

if len(sys.argv) < 2:
    sys.exit(__doc__)
folder, features = Path(sys.argv[1]), [float(value) for value in sys.argv[2:]]
# From bytes: onnxruntime then never opens another file.
session = onnxruntime.InferenceSession(
    (folder / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"]
)
given = np.load(folder / "golden" / "input.npy")
expected = np.load(folder / "golden" / "output.npy")

(answers,) = session.run(None, {"input": given})
if answers.shape != expected.shape:
    sys.exit(f"golden vectors: shape {answers.shape} instead of {expected.shape}")
error = np.abs(answers - expected).max()
# Written so that NaN is a mismatch too.
if not error <= 1e-5 * np.abs(expected).max():
    sys.exit(f"golden vectors: the largest error is {error:.3g}")
print(f"golden vectors: {len(given)} rows agree, the largest error is {error:.3g}")

row = np.array([features], dtype=np.float32) if features else given[:1]
print("answer:", *session.run(None, {"input": row})[0][0])
