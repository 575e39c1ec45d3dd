"""python predict.py PUBLISHED_FOLDER [FEATURE ...]: golden vectors, then the answer to a row."""

import sys
from pathlib import Path

import numpy as np
import torch

if len(sys.argv) < 2:
    sys.exit(__doc__)
folder, features = Path(sys.argv[1]), [float(value) for value in sys.argv[2:]]
model = torch.export.load(folder / "model.pt2").module()
given = torch.from_numpy(np.load(folder / "golden" / "input.npy"))
expected = torch.from_numpy(np.load(folder / "golden" / "output.npy"))

with torch.no_grad():
    answers = model(given)
    if answers.shape != expected.shape:
        sys.exit(f"golden vectors: shape {answers.shape} instead of {expected.shape}")
    error = (answers - expected).abs().max().item()
    # Written so that NaN is a mismatch too.
    if not error <= 1e-5 * expected.abs().max().item():
        sys.exit(f"golden vectors: the largest error is {error:.3g}")
    print(f"golden vectors: {len(given)} rows agree, the largest error is {error:.3g}")

    row = torch.tensor([features]) if features else given[:1]
    print("answer:", *model(row)[0].tolist())
