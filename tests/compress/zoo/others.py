"""Point clouds, recommendations, graphs, video."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PointConv(nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(nn.Conv1d(inside, outside, 1), nn.BatchNorm1d(outside), nn.ReLU())


class TransformNet(nn.Module):
    """Predicts the matrix [batch, k, k] that turns a cloud upright."""

    def __init__(self, k: int, width: int) -> None:
        super().__init__()
        self.k = k
        self.conv = nn.Sequential(PointConv(k, width), PointConv(width, 4 * width))
        self.fc = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, k * k))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max(self.conv(x), 2, keepdim=True)[0]
        x = self.fc(x.view(x.size(0), -1)).view(-1, self.k, self.k)
        return x + torch.eye(self.k, device=x.device).unsqueeze(0).repeat(x.size(0), 1, 1)


class PointNet(nn.Module):
    """Qi et al. 2016: classifies clouds [batch, 3, points]; also gives the feature transform."""

    def __init__(self, width: int = 64, classes: int = 40) -> None:
        super().__init__()
        self.stn = TransformNet(3, width)
        self.conv1 = PointConv(3, width)
        self.fstn = TransformNet(width, width)
        self.conv2 = PointConv(width, 16 * width)
        self.head = nn.Sequential(
            nn.Linear(16 * width, 4 * width),
            nn.BatchNorm1d(4 * width),
            nn.ReLU(),
            nn.Dropout(p=0.3),
            nn.Linear(4 * width, classes),
        )

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        turn = self.stn(points)
        x = torch.bmm(points.transpose(2, 1), turn).transpose(2, 1)
        x = self.conv1(x)
        turn = self.fstn(x)
        x = torch.bmm(x.transpose(2, 1), turn).transpose(2, 1)
        x = self.conv2(x).amax(dim=2)
        return F.log_softmax(self.head(x), dim=1), turn


class DLRM(nn.Module):
    """Naumov et al. 2019: dense features, bags of indices, and the products of all pairs.

    `indices` [batch, tables, bag] has as many indices in each bag.
    """

    def __init__(
        self, tables: int = 8, rows: int = 10000, width: int = 64, dense: int = 13
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(
            nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables)
        )
        self.bottom = nn.Sequential(
            nn.Linear(dense, 4 * width), nn.ReLU(), nn.Linear(4 * width, width), nn.ReLU()
        )
        pairs = torch.tril_indices(tables + 1, tables + 1, offset=-1)
        self.register_buffer("pairs", pairs)
        self.top = nn.Sequential(
            nn.Linear(width + pairs.size(1), 4 * width), nn.ReLU(), nn.Linear(4 * width, 1)
        )

    def forward(self, dense: Tensor, indices: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        features = [bottom]
        for table, embedding in enumerate(self.embeddings):
            features.append(embedding(indices[:, table]))
        stacked = torch.stack(features, dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        crossed = products[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.top(torch.cat([bottom, crossed], dim=1))).squeeze(1)


class OffsetBag(nn.Module):
    """Text classification over bags of several lengths: all tokens in one row, and where each
    bag begins.
    """

    def __init__(self, vocabulary: int = 20000, width: int = 64, classes: int = 4) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary, width, mode="mean")
        self.fc = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        return self.fc(self.embedding(tokens, offsets))


class GraphConv(nn.Module):
    """Kipf and Welling 2016: sums over neighbours, weighed by degree."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inside, outside, bias=False)
        self.bias = nn.Parameter(torch.randn(outside) * 0.1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        degree = torch.ones(x.size(0), device=x.device)
        degree = degree.index_add(0, target, torch.ones(target.size(0), device=x.device))
        scale = degree.rsqrt()
        x = self.lin(x)
        messages = x[source] * (scale[source] * scale[target]).unsqueeze(1)
        own = x * scale.pow(2).unsqueeze(1)
        return own.index_add(0, target, messages) + self.bias


class GraphNet(nn.Module):
    """Two rounds of messages; answers for every node and, by their mean, for every graph."""

    def __init__(self, features: int = 1433, hidden: int = 64, classes: int = 7) -> None:
        super().__init__()
        self.conv1 = GraphConv(features, hidden)
        self.conv2 = GraphConv(hidden, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.conv1(x, edges))
        x = self.head(F.dropout(F.relu(self.conv2(x, edges)), p=0.5, training=self.training))
        return x, x.mean(dim=0, keepdim=True)


class VideoNet(nn.Module):
    """Tran et al. 2014, in small: convolutions over time and space, [batch, 3, t, h, w]."""

    def __init__(self, width: int = 64, classes: int = 101) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(3, width, 3, padding=1),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(width, 2 * width, 3, padding=1),
            nn.BatchNorm3d(2 * width),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(2),
            nn.Conv3d(2 * width, 4 * width, (3, 1, 1), padding=(1, 0, 0)),
            nn.AvgPool3d(2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.features(clip).mean(dim=[2, 3, 4]))
