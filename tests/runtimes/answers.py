"""The answers of one runtime, made where it is installed: `answers.py RUNTIME FOLDER ...`.

Every array x (N, F) in a folder's x.npz is run through its model.onnx; the answer (N, O) gets its
name in a file that is named after the runtime.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def openvino(model: Path) -> Callable[[Any], Any]:
    import openvino

    # Otherwise it computes in bfloat16 where the processor can.
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", precise)
    return lambda x: compiled([x])[0]


def opencv(model: Path) -> Callable[[Any], Any]:
    import cv2

    net = cv2.dnn.readNetFromONNX(str(model))

    def run(x: Any) -> Any:
        net.setInput(x)
        return net.forward()

    return run


if __name__ == "__main__":
    runtime, *folders = sys.argv[1:]
    load = {"openvino": openvino, "opencv": opencv}[runtime]
    for folder in map(Path, folders):
        run = load(folder / "model.onnx")
        answers = {name: run(value) for name, value in np.load(folder / "x.npz").items()}
        np.savez(folder / f"{runtime}.npz", **answers)
