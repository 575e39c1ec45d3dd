"""The answers of one runtime, made where it is installed: `answers.py RUNTIME MODEL X.npz Y.npz`.

Every array x (N, F) in X.npz is run through the one loaded model; its answer (N, O) gets its name.
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
    runtime, model, x, y = sys.argv[1:]
    run = {"openvino": openvino, "opencv": opencv}[runtime](Path(model))
    np.savez(y, **{name: run(value) for name, value in np.load(x).items()})
