"""The whole zoo."""

from __future__ import annotations

from tests.compress.zoo import entries_convnets, entries_sequences, entries_transformers
from tests.compress.zoo.entry import Entry

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        *entries_convnets.ENTRIES,
        *entries_transformers.ENTRIES,
        *entries_sequences.ENTRIES,
    )
}
