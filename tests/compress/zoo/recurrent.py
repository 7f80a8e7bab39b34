"""Recurrent nets: taggers, packed sequences, cells in a loop, and decoders that feed themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class LSTMTagger(nn.Module):
    """A label for every token, from a bidirectional LSTM."""

    def __init__(
        self, vocabulary: int = 10000, width: int = 128, hidden: int = 256, labels: int = 17
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.lstm = nn.LSTM(
            width, hidden, num_layers=2, batch_first=True, bidirectional=True, dropout=0.2
        )
        self.head = nn.Linear(2 * hidden, labels)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        return self.head(states)


class GRUTagger(nn.Module):
    """As above from a GRU, time first; also gives the last state."""

    def __init__(
        self, vocabulary: int = 10000, width: int = 128, hidden: int = 256, labels: int = 17
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, hidden, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, labels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.gru(self.embedding(tokens).transpose(0, 1))
        return self.head(states).transpose(0, 1), last


class PackedTagger(nn.Module):
    """Sequences of several lengths: the padding is never seen by the LSTM."""

    def __init__(
        self, vocabulary: int = 10000, width: int = 128, hidden: int = 256, labels: int = 17
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, labels)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        states, _ = self.lstm(packed)
        padded, _ = pad_packed_sequence(states, batch_first=True, total_length=tokens.size(1))
        return self.head(padded)


class SpeechLSTM(nn.Module):
    """Streams: takes the state as a tuple and gives it back; the projection is narrow."""

    def __init__(self, mels: int = 40, hidden: int = 512, projected: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(mels, hidden, num_layers=2, batch_first=True, proj_size=projected)
        self.head = nn.Linear(projected, 30)

    def forward(
        self, frames: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        states, state = self.lstm(frames, state)
        return F.log_softmax(self.head(states), dim=-1), state


class CellLoop(nn.Module):
    """A GRU cell stepped over the sequence in Python: scripted, its length sets the trips."""

    def __init__(self, features: int = 64, hidden: int = 256) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.GRUCell(features, hidden)
        self.head = nn.Linear(hidden, 5)

    def forward(self, frames: Tensor) -> Tensor:
        state = torch.zeros(frames.size(0), self.hidden, device=frames.device)
        states: list[Tensor] = []
        for step in range(frames.size(1)):
            state = self.cell(frames[:, step], state)
            states.append(state)
        return self.head(torch.stack(states, dim=1))


class Decoder(nn.Module):
    """One step: attends to the encoder's states (Luong et al. 2015), then predicts a token."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.cell = nn.LSTMCell(width, hidden)
        self.combine = nn.Linear(2 * hidden, hidden)
        self.out = nn.Linear(hidden, vocabulary)

    def forward(
        self, token: Tensor, state: tuple[Tensor, Tensor], memory: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, cell = self.cell(self.embedding(token), state)
        weights = torch.softmax(torch.bmm(memory, hidden.unsqueeze(2)).squeeze(2), dim=1)
        context = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)
        mixed = torch.tanh(self.combine(torch.cat([hidden, context], dim=1)))
        return self.out(mixed), (hidden, cell)


class Seq2Seq(nn.Module):
    """Sutskever et al. 2014: decodes greedily for a fixed number of steps."""

    def __init__(
        self, vocabulary: int = 8000, width: int = 128, hidden: int = 256, steps: int = 20
    ) -> None:
        super().__init__()
        self.steps = steps
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.LSTM(width, hidden, batch_first=True)
        self.decoder = Decoder(vocabulary, width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        memory, (hidden, cell) = self.encoder(self.embedding(tokens))
        state = (hidden[0], cell[0])
        token = torch.ones(tokens.size(0), dtype=torch.long, device=tokens.device)
        answers: list[Tensor] = []
        for _ in range(self.steps):
            logits, state = self.decoder(token, state, memory)
            answers.append(logits)
            token = logits.argmax(dim=1)
        return torch.stack(answers, dim=1)


class Seq2SeqUntilEnd(Seq2Seq):
    """Stops when every row has ended, which only the data tells; gives how many steps it took."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, int]:
        memory, (hidden, cell) = self.encoder(self.embedding(tokens))
        state = (hidden[0], cell[0])
        token = torch.ones(tokens.size(0), dtype=torch.long, device=tokens.device)
        ended = torch.zeros(tokens.size(0), dtype=torch.bool, device=tokens.device)
        answers: list[Tensor] = []
        taken = 0
        while taken < self.steps and not bool(ended.all()):
            logits, state = self.decoder(token, state, memory)
            answers.append(logits)
            token = logits.argmax(dim=1)
            ended = ended | (token % 4 == 0)
            taken += 1
        return torch.stack(answers, dim=1), taken


class RNNClassifier(nn.Module):
    """The plain recurrence, with its last state as the answer's source."""

    def __init__(self, features: int = 28, hidden: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.rnn = nn.RNN(features, hidden, num_layers=2, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, rows: Tensor) -> Tensor:
        _, last = self.rnn(rows)
        return self.head(last[-1])
