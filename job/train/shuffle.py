"""The order of the training rows in each epoch.

Shapes: N rows.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from job.streams import Purpose, generator


class Shuffle:
    """Orders of n rows, one for each of so many epochs, which the seed gives.

    With `ahead` a thread draws the next one while this one is trained on, for which there should be
    a CPU: the drawing is a tenth of an epoch, and on a GPU at large batches more than the steps.
    """

    def __init__(self, n: int, seed: int, epochs: int, *, ahead: bool) -> None:
        self.n, self.seed, self.epochs = n, seed, epochs
        self.thread = ThreadPoolExecutor(1) if ahead else None
        self.drawn: dict[int, Future[NDArray[np.int64]]] = {}  # by epoch

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Every row's number once (N,); epochs count from 1."""
        if self.thread is None:
            return self._draw(epoch)
        for needed in range(epoch, min(epoch + 1, self.epochs) + 1):
            if needed not in self.drawn:
                self.drawn[needed] = self.thread.submit(self._draw, needed)
        return self.drawn.pop(epoch).result()

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        return generator(self.seed, Purpose.SHUFFLE, epoch).permutation(self.n)
