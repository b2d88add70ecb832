"""UL2: one model on a mixture of denoisers: short spans, long or many spans, and the rest of a text from its start.

Tay et al. 2022, arXiv:2205.05131, section 3. The model is a decoder with a prefix: what is given is read from both
sides, what is asked for is written word by word. Spans are drawn as in T5 (Raffel et al. 2020, arXiv:1910.10683).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._words import need_words, pictures, read_prefix, word_loss
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.parts.words import PAD
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="ul2",
    papers=("UL2: Unifying Language Learning Paradigms",),
    modalities=("text",),
    differs="No published code confirms the table of denoisers. A prompt and its answer share one window instead of "
    "512 tokens each, and each text is cut so that both fit, to another length by every denoiser; so every "
    "step costs the same. AdamW instead of Adafactor. Mode and sentinel vectors belong to the objective, not "
    "to the vocabulary: there are as many sentinels as any denoiser needs, and the backbone that is left "
    "reads text without a mode token. Where the mean span is as long as all that is hidden, an X-denoiser "
    "hides one span at the end, as T5 draws spans.",
    rows=(37,),
    backbones=("tokens",),
    cost="1 forward on all tokens under a mask and one linear layer",
)
#: Family, mean span in tokens (0 = a single span), share of the text that is hidden.
DENOISERS = ("R:3:0.15", "R:8:0.15", "S:0:0.25", "X:3:0.5", "X:8:0.5", "X:64:0.15", "X:64:0.5")
MODES = ("R", "S", "X")


def span_counts(length: int, mean: float, rate: float) -> tuple[int, int]:
    """How many of ``length`` tokens are hidden, and in how many spans; (0, 0) of a text of fewer than two."""
    if length < 2:
        return 0, 0
    hidden = min(max(round(length * rate), 1), length - 1)
    spans = max(round(hidden / mean), 1) if mean else 1
    return hidden, min(spans, hidden, length - hidden)


def cut_at_random(items: Tensor, parts: Tensor, uniform: Tensor, most: int) -> Tensor:
    """Cut rows of items into parts of one item or more, every way of cutting alike.

    Args:
        items: (B,) how many there are.
        parts: (B,) how many parts, at most as many as items.
        uniform: (B, N) random numbers, N at least the most items.
        most: P, at least the most parts.

    Returns:
        (B, P) int64 lengths; 0 beyond the last part.
    """
    place = torch.arange(uniform.shape[1], device=uniform.device)
    there = place < items[:, None]
    rank = uniform.masked_fill(~there | (place == 0), 2.0).argsort(1).argsort(1)
    begins = (rank < parts[:, None] - 1) & (place > 0)
    lengths = torch.zeros(len(items), most, dtype=torch.int64, device=uniform.device)
    return lengths.scatter_add(1, begins.long().cumsum(1).clamp(max=most - 1), there.long())


@dataclass
class Packed:
    """Prompts and answers of a batch, one after the other in one row.

    Args:
        ids: (B, M) int64: words, then sentinels from V on, the end V + S, and the modes; 0 where nothing is.
        prompt: (B,) length of mode token, kept words and their sentinels.
        total: (B,) length of all.
        places: (B, N) where each word of the text stands in ``ids``; M for those that were cut off.
        hidden: (B, N) bool, which words of the text are asked for.
    """

    ids: Tensor
    prompt: Tensor
    total: Tensor
    places: Tensor
    hidden: Tensor

    def asked(self) -> Tensor:
        """(B, M) bool, the entries that the answer consists of."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (place >= self.prompt[:, None]) & (place < self.total[:, None])


def pack(text: Tensor, length: Tensor, kept: Tensor, gone: Tensor, mode: Tensor, first: int) -> Packed:
    """Write texts as ``[mode] kept <0> kept <1>`` and ``<0> gone <1> gone <end>``.

    Args:
        text: (B, N) int64, N also the room there is.
        length: (B,) how many words of each count, from its start.
        kept: (B, S) lengths of the spans that are kept, which alternate with those that are not and come first.
        gone: (B, S) lengths of the hidden spans.
        mode: (B,) number of the mode.
        first: V, the number of the first sentinel.
    """
    batch, room = text.shape
    most = kept.shape[1]
    place, span = (torch.arange(n, device=text.device) for n in (room, most))
    borders = torch.stack([kept, gone], 2).flatten(1).cumsum(1).contiguous()
    piece = torch.searchsorted(borders, place.expand(batch, -1).contiguous(), right=True)
    counts = place < length[:, None]
    hidden, number = (piece % 2 == 1) & counts, piece // 2
    spans = (gone > 0).sum(1)
    prompt = 1 + kept.sum(1) + spans
    total = prompt + gone.sum(1) + spans + (spans > 0)
    before_hidden, before_kept = hidden.long().cumsum(1) - hidden.long(), (counts & ~hidden).long().cumsum(1)
    to = torch.where(hidden, prompt[:, None] + before_hidden + number + 1, before_kept + number)
    to = to.masked_fill(~counts, room)
    real = span < spans[:, None]
    inside = (1 + kept.cumsum(1) + span).masked_fill(~real, room)
    ahead = (prompt[:, None] + gone.cumsum(1) - gone + span).masked_fill(~real, room)
    ids = torch.zeros(batch, room + 1, dtype=torch.int64, device=text.device)
    ids[:, 0] = first + most + 1 + mode
    ids = ids.scatter(1, to, text)
    for where in (inside, ahead):
        ids = ids.scatter(1, where, (first + span).expand(batch, -1))
    end = torch.where(spans > 0, total - 1, room)
    ids = ids.scatter(1, end[:, None], torch.full_like(end, first + most)[:, None])
    return Packed(ids[:, :room], prompt, total, to, hidden)


class UL2(Objective):
    """Mixture of denoisers.

    Args:
        backbone: network to train; it must read words.
        data: what the data look like.
        denoisers: ``FAMILY:MEAN SPAN:SHARE`` or ``FAMILY:MEAN SPAN:SHARE:WEIGHT`` each; a mean span of 0 hides one span
            at the end. A family R, S or X has a mode token of its own.
    """

    # The rate is not told with the paper's Adafactor; that of small masked models (ELECTRA, appendix A) is taken.
    recipe: ClassVar[dict[str, Any]] = {"optimizer": "adamw", "lr": 5e-4, "lr_per": 128, "lr_rule": "sqrt",
                                        "schedule": "linear", "weight_decay": 0.01, "warmup": 0.05, "clip": 1.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, denoisers: tuple[str, ...] = DENOISERS) -> None:
        super().__init__(backbone, data)
        need_words(backbone)
        self.views = make_views("crop_flip", data)
        self.room, self.words = data.extent[-1], backbone.shown_width
        read = [_read(text) for text in denoisers]
        if not read:
            raise UsageError("There is no denoiser.", where="denoisers", fix="Leave it out to get the paper's.")
        table = [[span_counts(n, mean, rate) for n in range(self.room + 1)] for _, mean, rate, _ in read]
        self.spans = max(spans for row in table for _, spans in row)
        longest = [max((n for n, (_, s) in enumerate(row) if s and n + 2 * s + 2 <= self.room), default=0)
                   for row in table]
        if min(longest) < 2:
            raise UsageError(f"A window of {self.room} tokens has no room for a prompt and its answer.", where="window",
                             fix="Set 8 or more.")
        weight = torch.tensor([w for *_, w in read], dtype=torch.float64)
        for name, value in (("table", torch.tensor(table)), ("longest", torch.tensor(longest)),
                            ("mode", torch.tensor([MODES.index(family) for family, *_ in read])),
                            ("until", (weight / weight.sum()).cumsum(0))):
            self.register_buffer(name, value, persistent=False)
        width = backbone.token_dim
        self.signs = nn.Embedding(self.spans + 1 + len(MODES), width)  # sentinels, the end, the modes
        nn.init.normal_(self.signs.weight, std=width**-0.5)
        self.head = nn.Linear(width, self.words + self.spans + 1)
        self.notes = [*self.views.notes, f"denoisers: {', '.join(denoisers)}; {self.spans} sentinels; texts are cut to "
                      f"{min(longest)} to {max(longest)} of {self.room} tokens"]

    table: Tensor  # (denoisers, N + 1, 2): tokens hidden and spans by length
    longest: Tensor
    mode: Tensor
    until: Tensor

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample (B,): summed error of the answer, hits, and its length; pooled features of the prompt."""
        packed = self.compose(self.views(batch[self.data.modality], draws)[0].x, draws)[1]
        scores, pooled = self.predict(packed)
        asked, ids = packed.asked()[:, 1:], packed.ids[:, 1:]
        error = F.cross_entropy(scores.float().transpose(1, 2), ids.masked_fill(~asked, 0), reduction="none")
        return {"error": (error * asked).sum(1), "asked": asked.sum(1).float(),
                "hits": ((scores.argmax(-1) == ids) & asked).sum(1).float(), "features": pooled.detach()}

    def compose(self, x: Tensor, draws: Draws) -> tuple[Tensor, Packed]:
        """The part of each text (B, N) that is used, from its start, and its prompt and answer."""
        text = self.backbone.shown(x)
        draw = draws.fork("denoiser")
        which = torch.searchsorted(self.until, draw.rand().to(text.device).double(), right=True)
        which = which.clamp(max=len(self.until) - 1)
        place = torch.arange(self.room, device=text.device)
        written = ((text != PAD) * (place + 1)).amax(1)
        length = written.minimum(self.longest[which])
        start = (draw.rand().to(text.device).double() * (written - length + 1)).long().minimum(written - length)
        text = text.gather(1, (start[:, None] + place).clamp(max=self.room - 1))
        text = text.masked_fill(place >= length[:, None], PAD)
        hidden, spans = self.table[which, length].unbind(1)
        gone = cut_at_random(hidden, spans, draws.fork("gone").rand(self.room).to(text.device), self.spans)
        kept = cut_at_random(length - hidden, spans, draws.fork("kept").rand(self.room).to(text.device), self.spans)
        return text, pack(text, length, kept, gone, self.mode[which], self.words)

    def predict(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Scores of every entry from the second on, (B, M - 1, V + S + 1), and pooled features of the prompt."""
        place = torch.arange(self.room, device=packed.ids.device)
        free, shown = place < packed.prompt[:, None], place < packed.total[:, None]
        sign = packed.ids >= self.words
        vectors = self.backbone.stem(packed.ids.masked_fill(sign, PAD)[:, None].float())
        signs = self.signs((packed.ids - self.words).clamp(min=0)) * self.signs.embedding_dim**0.5
        vectors = torch.where(sign[..., None], signs.to(vectors.dtype), vectors)
        out = read_prefix(self.backbone, packed.ids, free, shown, vectors)
        pooled = (out * free[..., None]).sum(1) / packed.prompt[:, None]
        return self.head(out[:, :-1]), pooled

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over all entries of the answers."""
        return word_loss(encoded)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The part of the text used, with hidden words at -1, and with the likeliest word for each: (B, 1, N)."""
        draws = Draws.of(batch, step)
        text, packed = self.compose(self.views(batch[self.data.modality], draws)[0].x, draws)
        words = self.predict(packed)[0][..., :self.words].argmax(-1)
        guess = words.gather(1, (packed.places - 1).clamp(0, self.room - 2))
        return pictures(text, torch.arange(self.room, device=text.device).expand_as(text), packed.hidden, guess)


def _read(text: str) -> tuple[str, float, float, float]:
    """A denoiser as it is written: family, mean span, share, weight."""
    family, *numbers = text.split(":")
    try:
        mean, rate, weight = (float(n) for n in (*numbers, "1")[:3])
    except ValueError:
        mean = rate = weight = -1.0
    if family not in MODES or len(numbers) not in (2, 3) or not 0 < rate < 1 or weight <= 0 or not (
            mean == 0 or mean >= 1):
        raise UsageError(f"'{text}' is no denoiser.", where="denoisers",
                         fix="Write R, S or X, a mean span (0, or 1 and more) and a share, e.g. R:3:0.15.")
    return family, mean, rate, weight
