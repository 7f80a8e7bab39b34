"""The teacher: answers each sample once and remembers, or answers anew where samples change."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, fx

from compress.devices import CPU
from compress.measure.outputs import primary_output
from compress.spec.training import TrainingConfig
from compress.train.features import Taps
from compress.train.machine import Machine, choose_machine
from compress.train.objective import Answers, Batch
from compress.train.refusing import tell_refusals
from compress.train.rows import RowReader

_MOST_DISK_SHARE = 0.5
"""Of the free disk, that answers may take."""
_ALIKE = 0.1
"""Relative difference of answers that are the same but for rounding, in bfloat16 too."""
_OUTPUT = ""
"""Where the answer itself stands among the layers."""


class Teacher:
    """A model that answers for a student to learn from; it never learns itself."""

    def __init__(self, model: fx.GraphModule, layers: Sequence[str] = ()) -> None:
        """Take a model over.

        Args:
            model: A lifted graph; from now on the teacher's own.
            layers: Its layers whose outputs are features.

        Raises:
            InvalidSpec: It has no such layer.
        """
        self._model = model.eval().requires_grad_(False)
        self._layers = list(dict.fromkeys(layers))
        self._taps = Taps(model, layers, "teacher")
        self._machine = Machine(CPU)
        self._rows: RowReader | None = None
        self._places: np.ndarray | None = None

    @property
    def remembers(self) -> bool:
        """Whether answers are recalled rather than computed."""
        return self._rows is not None

    def settle(
        self, inputs: Sequence[Any], config: TrainingConfig, device: torch.device
    ) -> Machine:
        """Move to where the student is trained, and return how the teacher computes there.

        Args:
            inputs: Of a few samples, on the processor.
            config: Whose `amp` is heeded.
            device: Where.
        """
        self._machine = choose_machine(self._model, inputs, config, device)
        self._machine.place(self._model)
        return self._machine

    def answer(self, inputs: Sequence[Any]) -> Answers:
        """Answer a batch; the inputs are where the teacher is.

        Raises:
            ModelFailed: It does not run on them.
        """
        told = tell_refusals("The teacher does not run on some of the training data")
        with told, torch.no_grad(), self._machine.computing():
            output = primary_output(self._model(*self._machine.arrange(inputs)))
        return Answers(output, {name: self._taps.outputs[name].float() for name in self._layers})

    def remember(
        self,
        batches: Callable[[], Iterator[tuple[np.ndarray, Batch]]],
        samples: int,
        answered: int,
        folder: Path,
        on_samples: Callable[[int], None],
    ) -> bool:
        """Answer all samples once, into files that are read by row from then on.

        Answers are kept in float32, as they would be given: in 16 bits the files are half as
        large, but reading them is not what takes time, and outputs of regressions may not fit.

        Args:
            batches: Yields the samples' indices in the dataset and a batch, on the machine.
            samples: Length of the dataset.
            answered: Of which so many will be.
            folder: An existing folder, which must outlive the teacher.
            on_samples: Receives the number of samples answered.

        Returns:
            Whether it remembers; not where the files would fill the disk, nor where the answer to
            a sample hangs on the others in its batch, as in contrastive models, or differs in shape
            from batch to batch.
        """
        files: dict[str, BinaryIO] = {}
        shapes: dict[str, torch.Size] = {}
        places = np.full(samples, -1, np.int64)
        done, is_whole = 0, False
        try:
            for indices, batch in batches():
                found = self._flat(self.answer(batch.inputs))
                if any(t.shape[:1] != (len(indices),) for t in found.values()):
                    return False
                rows = {name: tensor.shape[1:] for name, tensor in found.items()}
                if not shapes:
                    shapes = rows
                    if not self._fits(found, answered, folder) or self._hangs_together(
                        batch, found
                    ):
                        return False
                    for index, name in enumerate(found):
                        files[name] = (folder / f"answers-{index}.f32").open("wb")
                if rows != shapes:
                    return False
                for name, tensor in found.items():
                    files[name].write(tensor.contiguous().cpu().numpy().data)
                places[indices] = np.arange(done, done + len(indices))
                done += len(indices)
                on_samples(done)
            is_whole = True
        except OSError:  # the disk is full after all, or files may not be as large
            return False
        finally:
            for file in files.values():
                file.close()
                if not is_whole:
                    Path(file.name).unlink()
        if not done or any(math.prod(shape) == 0 for shape in shapes.values()):
            return False
        self._rows = RowReader({
            name: np.memmap(file.name, np.float32, "r", shape=(done, *shapes[name]))
            for name, file in files.items()
        })  # fmt: skip
        self._places = places
        return True

    def recall(self, indices: np.ndarray) -> Answers | None:
        """Return what was answered for samples; None unless all of them are remembered."""
        if self._rows is None or self._places is None:
            return None
        places = self._places[indices]
        if (places < 0).any():
            return None
        found = self._rows.read(places)
        return Answers(found.pop(_OUTPUT), found)

    def _hangs_together(self, batch: Batch, whole: dict[str, Tensor]) -> bool:
        """Whether half of the samples, alone, are answered otherwise than among all of them."""
        some, *others = batch.parts(2)
        if not others:
            return False
        for name, alone in self._flat(self.answer(some.inputs)).items():
            among = whole[name][: len(some)]
            if alone.shape != among.shape:
                return True
            if float((alone - among).norm()) > _ALIKE * float(among.norm()):
                return True
        return False

    def _flat(self, answers: Answers) -> dict[str, Tensor]:
        return {_OUTPUT: answers.output, **answers.features}

    def _fits(self, found: dict[str, Tensor], samples: int, folder: Path) -> bool:
        one_bytes = sum(tensor[:1].nbytes for tensor in found.values())
        return one_bytes * samples <= _MOST_DISK_SHARE * shutil.disk_usage(folder).free
