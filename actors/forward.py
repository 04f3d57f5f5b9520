"""Logprobs of given tokens by a plain transformers forward pass: what an engine's are held against.

Sequences go through in batches of about equal length and in pieces over a KV cache, so that the logits of one piece
bound the memory. torch and transformers are imported only where a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rollout.errors import UserError, describe, nearest
from rollout.sequences import Scored

if TYPE_CHECKING:
    import torch

DTYPES = ("bfloat16", "float16", "float32")
BATCH_TOKENS = 16_384
"""Positions in a batch, padding included."""
PIECE_LOGITS = 2**27
"""Logits that are held at once: 0.5 GiB in float32, and as much again for their logprobs."""


class ForwardPass:
    """A causal language model in eval mode."""

    def __init__(self, model: str | Path, dtype: str, device: str | None) -> None:
        """Loads a folder or hub name; `device` None takes a GPU where torch finds one.

        Raises UserError when transformers cannot load it, when there is no such device or torch is not installed.
        """
        if dtype not in DTYPES:
            raise UserError(f"--dtype: {dtype}: no such type{nearest(dtype, DTYPES)}")
        try:
            import torch
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(f"verify: needs torch and transformers, as vLLM has them: {describe(error)}") from error
        logging.disable_progress_bar()
        self._torch = torch
        try:
            self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            loaded: Any = AutoModelForCausalLM.from_pretrained(str(model), dtype=getattr(torch, dtype))
            self._model = loaded.to(self._device).eval()
        except (OSError, ValueError, RuntimeError, AssertionError) as error:  # torch's for a device it is not built for
            raise UserError(f"{model}: cannot be loaded for a forward pass: {describe(error)}") from error
        self._vocabulary: int = self._model.get_output_embeddings().weight.shape[0]

    @property
    def device(self) -> str:
        """Where it runs, as torch names it."""
        return str(self._device)

    def logprobs(self, sequences: Sequence[Scored]) -> list[npt.NDArray[np.float64]]:
        """Of the tokens at `places` of each sequence, in order: natural log, after temperature, top_k and top_p as they
        were sampled with; -inf where those cut the token off.

        Raises UserError for an id that the model does not have.
        """
        for sequence in sequences:
            if (highest := int(sequence.token_ids.max(initial=0))) >= self._vocabulary:
                told = f"{sequence.episode_id}: token id {highest}, the model has {self._vocabulary}"
                raise UserError(f"{told}: is it the model of this run?")
        found: dict[int, npt.NDArray[np.float64]] = {}
        with self._torch.inference_mode():
            for batch in batches([len(sequence.token_ids) for sequence in sequences]):
                told = self._batch([sequences[number] for number in batch])
                found.update(zip(batch, told, strict=True))
        return [found[number] for number in range(len(sequences))]

    def _batch(self, batch: Sequence[Scored]) -> list[npt.NDArray[np.float64]]:
        """Padding is on the right, where no real token looks: causal attention needs no mask."""
        torch = self._torch
        width = max(len(sequence.token_ids) for sequence in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence.token_ids)] = torch.from_numpy(sequence.token_ids)
        ids = ids.to(self._device)
        told = [np.full(len(sequence.places), np.nan) for sequence in batch]
        piece = max(1, PIECE_LOGITS // (self._vocabulary * len(batch)))
        cache = None
        for start in range(0, width, piece):
            end = min(start + piece, width)
            output = self._model(ids[:, start:end], past_key_values=cache, use_cache=end < width)
            cache = output.past_key_values
            for row, sequence in enumerate(batch):
                chosen = (sequence.places > start) & (sequence.places <= end)  # logits at t are of token t + 1
                if chosen.any():
                    logits = output.logits[row, torch.from_numpy(sequence.places[chosen] - 1 - start).to(self._device)]
                    told[row][chosen] = self._chosen(logits, sequence, chosen)
        return told

    def _chosen(self, logits: torch.Tensor, sequence: Scored, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Logprobs of the sampled tokens from their logits (tokens, vocabulary)."""
        torch = self._torch

        def column(values: npt.NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(values[chosen]).to(self._device)[:, None]

        logits = logits.float() / column(sequence.temperature)
        top_k, top_p = sequence.top_k[chosen], sequence.top_p[chosen]
        if (top_k > 0).any():
            logits = cut_top_k(logits, column(np.where(sequence.top_k > 0, sequence.top_k, self._vocabulary)))
        if (top_p < 1).any():
            logits = cut_top_p(logits, column(sequence.top_p))
        sampled = torch.from_numpy(sequence.token_ids[sequence.places[chosen]]).to(self._device)[:, None]
        return logits.log_softmax(-1).gather(1, sampled)[:, 0].double().cpu().numpy()


def cut_top_k(logits: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Logits (tokens, vocabulary) with -inf below the `top_k`-th (tokens, 1) largest; ties with it stay, as in vLLM."""
    ranked = logits.sort(dim=-1, descending=True).values
    return logits.masked_fill(logits < ranked.gather(1, top_k.clamp(max=logits.shape[1]) - 1), -np.inf)


def cut_top_p(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Logits (tokens, vocabulary) with -inf for tokens behind more likely ones that have `top_p` (tokens, 1) together;
    the most likely stays. As in vLLM, what top_k cut off is not counted."""
    ranked, order = logits.sort(dim=-1, descending=True)
    chances = ranked.softmax(-1)
    cut = chances.cumsum(-1) - chances >= top_p
    cut[:, 0] = False
    return logits.masked_fill(cut.new_zeros(cut.shape).scatter(1, order, cut), -np.inf)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of sequences by length, the longest first, BATCH_TOKENS with padding in a batch; a longer one alone."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
