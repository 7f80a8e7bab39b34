"""A model that does not run on some samples of the training data, told as the job's error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compress.errors import ModelFailed
from compress.lift import clean_message
from compress.original import REFUSALS
from compress.out_of_memory import lacks_memory

_RANGE = "index out of range"
"""What embeddings say."""


@contextmanager
def tell_refusals(what: str) -> Iterator[None]:
    """Turn what a model raises into ModelFailed; of memory the job has an error of its own.

    Args:
        what: Begins the message: which model does not run, and on what.

    Raises:
        ModelFailed: What the model says.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (*REFUSALS, ValueError) as error:
        if lacks_memory(error):
            raise
        hint = ": the data may hold ids that it does not know" if _RANGE in str(error) else ""
        raise ModelFailed(f"{what}{hint}; it says: {clean_message(error)}") from error
