"""What a classifier takes for what: a confusion matrix, and its most confident mistakes."""

import torch
from torch import Tensor

from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.sheets import Cell, Pixels, matrix, sheet

MOST = 100  # classes up to which there is a matrix
SHOWN, COLUMNS = 16, 8  # mistakes, and in a row


class Mistakes:
    """Takes a classifier's answers batch by batch.

    kinds: of classes, 0 where that is known with the first batch. classes: their names.
    """

    def __init__(self, classes: list[str] | None, kinds: int = 0) -> None:
        self.classes, self.kinds = classes or [], kinds
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.worst: list[tuple[float, Cell]] = []

    def add(self, pixels: Tensor, score: Tensor, label: Tensor, keep: Tensor) -> None:
        """pixels uint8 (N, S, S, 3); score (N, K), the largest of which is the answer and how sure
        the classifier is of it; label (N,); keep (N,): which of them count.
        """
        K = self.kinds = score.shape[1]
        sure, answer = score.max(1)
        keep = keep & score.isfinite().all(1) & (label >= 0) & (label < K)
        if K <= MOST:
            pair = (label.long() * K + answer)[keep]
            counts = torch.bincount(pair, minlength=K * K)
            self.counts = counts + self.counts if len(self.counts) else counts
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            return
        wrong = (keep & (answer != label)).nonzero().flatten()
        for i in wrong[sure[wrong].argsort(descending=True, stable=True)][:SHOWN].tolist():
            words = f"{self.name(answer[i])} {sure[i]:.2f}\nis {self.name(label[i])}"
            self.worst.append((float(sure[i]), (pixels[i].cpu().numpy(), words)))
        self.worst = sorted(self.worst, key=lambda found: -found[0])[:SHOWN]

    def name(self, kind: Tensor) -> str:
        """Of a class; its number where there are no names."""
        k = int(kind)
        return self.classes[k] if k < len(self.classes) else str(k)

    def pictures(self, ranks: Ranks) -> dict[str, Pixels]:
        """`confusion`, of all ranks' samples, and `mistakes`, of this rank's; a row of the first is
        a true class. Called by every rank.
        """
        out: dict[str, Pixels] = {}
        if 0 < self.kinds <= MOST:
            K = self.kinds
            names = [self.name(torch.tensor(k)) for k in range(K)]
            out["confusion"] = matrix(ranks.sum(self.counts).view(K, K), names)
        cells = [cell for _, cell in self.worst]
        if cells:
            rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
            out["mistakes"] = sheet(rows)
        return out
