"""Batches brought up ahead of time: read, changed and copied while the model computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from compress.spec.training import Augmentation
from compress.structure import map_tensors
from compress.train.augment import augment
from compress.train.data import TrainingData
from compress.train.machine import Machine
from compress.train.objective import Answers, Batch

T = TypeVar("T")
_AUGMENT = 3
"""Tells these random numbers from others of the same seed."""


class Loader:
    """Brings batches of a TrainingData onto a machine, in order."""

    def __init__(
        self,
        data: TrainingData,
        machine: Machine,
        batch_size: int,
        augmentations: Sequence[Augmentation] = (),
    ) -> None:
        self._data = data
        self._reader = data.reader()
        self._machine = machine
        self._batch_size = batch_size
        self._augmentations = [kind for kind in augmentations if kind != "none"]
        on_gpu = machine.device.type == "cuda"
        self._threads = 4 if on_gpu else 2 if self._augmentations else 1

    def steps(self, first: int, last: int) -> Generator[Batch, None, None]:
        """Yield the batches of training steps `[first, last)`."""
        order = self._data.order(first, last, self._batch_size)
        return self._bring(
            partial(self._training, step, indices) for step, indices in enumerate(order, first)
        )

    def every(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yield some samples in file order, as they are, with their indices."""
        count = max(1, -(-len(indices) // self._batch_size))
        pieces = np.array_split(indices, count)
        batches = self._bring(partial(self._plain, piece) for piece in pieces)
        return zip(pieces, batches, strict=True)

    def _training(self, step: int, indices: np.ndarray) -> Batch:
        batch = self._reader.read(indices, with_answers=not self._augmentations)
        if self._augmentations:
            batch = augment(batch, self._augmentations, (self._data.seed, _AUGMENT, step))
        return self._ready(batch)

    def _plain(self, indices: np.ndarray) -> Batch:
        return self._ready(self._reader.read(indices, with_answers=True))

    def _ready(self, batch: Batch) -> Batch:
        batch = replace(batch, inputs=self._machine.arrange(batch.inputs))
        if self._machine.device.type != "cuda":
            return batch
        return _each(batch, lambda tensor: tensor.pin_memory())

    def _bring(self, jobs: Iterable[Callable[[], Batch]]) -> Generator[Batch, None, None]:
        batches = _ahead(jobs, self._threads)
        if self._machine.device.type != "cuda":
            return batches
        return _onto_gpu(batches, self._machine.device)


def _ahead(jobs: Iterable[Callable[[], T]], threads: int) -> Generator[T, None, None]:
    """Yield what jobs return, in order; a few are always under way in threads."""
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        under_way: deque[Future[T]] = deque()
        try:
            for job in jobs:
                under_way.append(pool.submit(job))
                if len(under_way) > threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _onto_gpu(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Copy each batch, from pinned memory, while the one before is computed on."""
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copied: Batch | None = None

    def copy() -> Batch | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))

    copied = copy()
    while copied is not None:
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        current = copied
        _each(current, partial(_used_on, computing))
        copied = copy()
        yield current


def _used_on(stream: torch.cuda.Stream, tensor: torch.Tensor) -> torch.Tensor:
    """Keep the memory until the stream is done with it."""
    tensor.record_stream(stream)
    return tensor


def _each(batch: Batch, change: Any) -> Batch:
    """Return a batch with every tensor changed."""
    answers = batch.answers
    if answers is not None:
        answers = Answers(change(answers.output), map_tensors(answers.features, change))
    return replace(
        batch,
        inputs=[map_tensors(value, change) for value in batch.inputs],
        label=map_tensors(batch.label, change),
        answers=answers,
        other_label=map_tensors(batch.other_label, change),
    )
