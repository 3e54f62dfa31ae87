"""The querying transformer of BLIP-2 with an instruction: learned queries and words look at each other, and
the queries at an image.

Source: Li et al., "BLIP-2", ICML 2023, and Dai et al., "InstructBLIP", NeurIPS 2023 (arXiv:2305.06500); the
names are those of the BERT in LAVIS. There are no token types, the words have no head of their own, and
queries and words share the self-attention but not the perceptrons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-12


@dataclass(frozen=True)
class QFormerSize:
    """Width, layers, heads and width of the perceptrons; words and the longest text; every how many layers,
    from the first on, the queries look at the image, whose tokens have `image` channels; how many queries
    there are."""

    width: int
    layers: int
    heads: int
    hidden: int
    words: int
    image: int
    queries: int
    every: int = 2
    longest: int = 512
    dropout: float = 0.1


class Heads(nn.Module):
    """Attention of x [B, N, D] to what is seen [B, M, D']."""

    def __init__(self, size: QFormerSize, seen: int) -> None:
        super().__init__()
        self.heads, self.rate = size.heads, size.dropout
        self.query = nn.Linear(size.width, size.width)
        self.key, self.value = (nn.Linear(seen, size.width) for _ in range(2))

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        """`mask` bool [B, 1, 1, M]: what can be seen."""
        q, k, v = (
            layer(of).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, of in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        rate = self.rate if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=rate).transpose(1, 2).flatten(2)


class Added(nn.Module):
    """norm(dropout(dense(x)) + residual), as after each part of a BERT."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attended(nn.Module):
    """Heads and what is added after them."""

    def __init__(self, size: QFormerSize, seen: int) -> None:
        super().__init__()
        self.self = Heads(size, seen)
        self.output = Added(size.width, size.width, size.dropout)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.output(self.self(x, seen, mask), x)


class Widened(nn.Module):
    """The first layer of a perceptron, with GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """One layer: all look at all, then (in some layers) the queries at the image, then a perceptron each."""

    def __init__(self, size: QFormerSize, looks: bool) -> None:
        super().__init__()
        self.attention = Attended(size, size.width)
        self.crossattention = Attended(size, size.image) if looks else None
        self.intermediate = Widened(size.width, size.hidden)
        self.output = Added(size.hidden, size.width, size.dropout)
        self.intermediate_query = Widened(size.width, size.hidden)
        self.output_query = Added(size.hidden, size.width, size.dropout)

    def forward(self, x: Tensor, mask: Tensor, image: Tensor, queries: int) -> Tensor:
        """x [B, Q + L, D], queries first."""
        x = self.attention(x, x, mask)
        asked, text = x[:, :queries], x[:, queries:]
        if self.crossattention is not None:
            asked = self.crossattention(asked, image)
        asked = self.output_query(self.intermediate_query(asked), asked)
        text = self.output(self.intermediate(text), text)
        return torch.cat([asked, text], dim=1)


class Embeddings(nn.Module):
    """Words with their positions, behind the queries, which have none; one norm for all."""

    def __init__(self, size: QFormerSize) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(size.words, size.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(size.longest, size.width)
        self.LayerNorm = nn.LayerNorm(size.width, eps=EPS)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, queries: Tensor, ids: Tensor) -> Tensor:
        words = self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]]
        return self.dropout(self.LayerNorm(torch.cat([queries, words], dim=1)))


class Encoder(nn.Module):
    """The layers; the queries look at the image in the first and every `every`-th after it."""

    def __init__(self, size: QFormerSize) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(size, number % size.every == 0) for number in range(size.layers))


class QFormer(nn.Module):
    """The whole transformer; the learned queries stand outside of it, as in the published checkpoints."""

    def __init__(self, size: QFormerSize) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(size), Encoder(size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, queries: Tensor, ids: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """The last hidden state [B, Q + L, D], queries first.

        Args:
            queries: [B, Q, D].
            ids: int64 [B, L], the instruction.
            mask: bool [B, L], False where `ids` only fill up.
            image: [B, N, C], seen whole.
        """
        number = queries.shape[1]
        seen = torch.cat([mask.new_ones(len(mask), number), mask], dim=1)[:, None, None]
        x = self.embeddings(queries, ids)
        for layer in self.encoder.layer:
            x = layer(x, seen, image, number)
        return x
