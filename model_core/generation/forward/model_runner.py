"""A model's forward pass over a KV cache: chunks of prompts, then one token of every sequence per step.

It runs the blocks itself, without dropout, so the model's mode does not matter and no global generator is used. The
logits of a row have the same bits whatever runs beside it: no operation mixes rows, a chunk's attention depends on the
chunk alone, and attention of one query is two matmuls over a length that is a multiple of 16. Rows in use are always
the first ones, so a step takes a view and never gathers.

Shapes: A rows in use, P with the padding of a CUDA graph or of kernels, N tokens of all chunks, L positions, C n_embd,
V ids of the tokenizer, H heads and D head_dim of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model_core.config import ModelConfig
from model_core.generation.forward.kv_cache import CHUNK, Block, KVCache
from model_core.generation.forward.packed_model import PackedModel
from model_core.generation.forward.prefill import Prefill, PromptChunk, additive_mask, attention, pad_rows, rounded

__all__ = ["CHUNK", "Block", "ModelRunner", "Prefill", "PromptChunk"]

ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64)  # of steps on static buffers; beyond them, multiples of the last

_GRAPH_LEAST = 256  # positions of attention in a CUDA graph
_SMALL_MATMUL = 400  # products of a matmul below which torch takes another kernel, with another order of its sums


# tokens, positions and rows (P,) each, length -> logits (P, V)
_Forward = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class ModelRunner:
    """One model and the KV cache of the sequences that it generates.

    Args:
        weights: The model.
        rows: Most sequences at once.
        length: Most tokens of a sequence, prompt included; at most the model's block_size.
        static: Whether the cache has its full length from the start and steps run as CUDA graphs; None does so on a
            CUDA device.
    """

    def __init__(self, weights: PackedModel, *, rows: int, length: int, static: bool | None = None) -> None:
        self.weights, self.rows, self.length, self.device = weights, rows, length, weights.device
        self._shortest = least_positions(weights.config)
        is_static = self.device.startswith("cuda") if static is None else static
        self._cache = KVCache(
            weights.config,
            rows=padded_rows(rows) + 1 if is_static else rows,
            shortest=max(length, self._shortest) if is_static else self._shortest,
            dtype=weights.dtype,
            device=self.device,
        )
        self._static = self._static_step() if is_static else None

    @torch.inference_mode()
    def begin(self, chunks: Sequence[PromptChunk]) -> Prefill:
        """Begin a pass over chunks of prompts; the caller runs its layers, in inference mode.

        Args:
            chunks: Chunks of any rows; those of one row in order.

        Returns:
            The pass, before the first layer.
        """
        return Prefill(self.weights, self._cache, chunks)

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PromptChunk]) -> Tensor:
        """Run chunks of prompts, and store their keys and values.

        Args:
            chunks: See `begin`.

        Returns:
            Input of the head for every token, chunk after chunk, (N, C).
        """
        prefill = self.begin(chunks)
        while not prefill.is_done:
            prefill.advance()
        return prefill.hidden  # (N, C)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of the next tokens.

        Args:
            hidden: Rows of what `prefill` returned, (M, C).

        Returns:
            Logits, (M, V), float32.
        """
        return self.weights.head(hidden)  # (M, V)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Run one token of every row in use.

        Args:
            tokens: Newest token of each row, A ids.
            positions: Index of that token in its sequence, A of them.

        Returns:
            Logits of the next tokens, (A, V), float32.
        """
        self._cache.write_next(positions)
        if self._static is not None:
            return self._static.run(tokens, positions)  # (A, V)
        length = max(rounded(max(positions) + 1), self._shortest)
        at = torch.tensor(positions, device=self.device)  # (A,)
        return self._step(torch.tensor(tokens, device=self.device), at, None, length)  # (A, V)

    @torch.inference_mode()
    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the cached beginning of a sequence to another row.

        Args:
            source: Row to copy from.
            target: Row to copy to.
            length: Number of tokens to copy.
        """
        self._cache.write(target, 0, length)
        self._cache.copy_row(source, target, length)

    @torch.inference_mode()
    def swap_rows(self, first: int, second: int) -> None:
        """Exchange the sequences of two rows.

        Args:
            first: One row.
            second: The other.
        """
        self._cache.swap_rows(first, second)

    def free_row(self, row: int) -> None:
        """Forget the sequence of a row, so that the cache can shrink; a row that is reused needs no call.

        Args:
            row: Row of the sequence.
        """
        self._cache.free_row(row)

    @torch.inference_mode()
    def clear_row(self, row: int) -> None:
        """Forget the sequence of a row whose keys or values are not finite.

        Attention gives positions that it masks a weight of 0, and 0 times NaN would reach the row's next sequence.

        Args:
            row: Row of the sequence.
        """
        self._cache.clear_row(row)

    @torch.inference_mode()
    def read_block(self, row: int, start: int) -> Block:
        """Copy the keys and values of `CHUNK` positions, for later prompts that begin alike.

        Args:
            row: Row of the sequence.
            start: First position, a multiple of `CHUNK`.

        Returns:
            Keys and values of every layer.
        """
        return self._cache.read_block(row, start)

    @torch.inference_mode()
    def write_block(self, row: int, start: int, block: Block) -> None:
        """Store what `read_block` returned; the sequence of the row ends behind it.

        Args:
            row: Row of the sequence.
            start: First position, that of `read_block`.
            block: Keys and values of every layer.
        """
        self._cache.write_block(row, start, block)

    @torch.inference_mode()
    def use_rows(self, count: int, longest: int = 0) -> None:
        """Announce how many rows are in use, so that they exist and others take no memory; until then all exist.

        Args:
            count: Number of rows in use, the first ones.
            longest: Most positions that one of them will have.
        """
        if self._static is None:
            self._cache.use_rows(count, longest)

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV cache."""
        return self._cache.size_bytes

    @property
    def block_bytes(self) -> int:
        """Memory of what `read_block` returns."""
        return self._cache.block_bytes

    def need_bytes(self, rows: int, length: int) -> int:
        """Compute the memory of the KV cache when some rows have their longest sequence.

        Args:
            rows: Rows in use.
            length: Positions of the longest sequence.

        Returns:
            Bytes.
        """
        return self.cache_bytes if self._static is not None else self._cache.need_bytes(rows, length)

    def _static_step(self) -> StaticStep:
        spare_row = padded_rows(self.rows)
        length, device = self._cache.length, self.device
        return StaticStep(self._step, rows=self.rows, spare_row=spare_row, length=length, device=device)

    def _step(self, tokens: Tensor, at: Tensor, rows: Tensor | None, length: int) -> Tensor:
        """Run a token of each row, and write its keys and values to other rows than the first if `rows` names them."""
        count = len(tokens)
        x = self.weights.embed(tokens, at)  # (A, C)
        x = pad_rows(x, self.weights.kernel_rows(count))  # (P, C)
        indices, masks = self._cache.indices(at, rows), self._masks(at, length)
        for index, layer in enumerate(self.weights.layers):
            qkv = layer.c_attn(layer.ln_1(x)).view(-1, 3, layer.n_head, layer.head_dim)[:count]  # (A, 3, H, D)
            self._cache.append(index, indices[layer.n_head], qkv[:, 1:])
            k, v = self._cache.rows(index, count, length)  # 2 x (A*H, L, D)
            q = qkv[:, 0].reshape(-1, 1, layer.head_dim)  # (A*H, 1, D)
            y = attention(q, k, v, masks[layer.n_head])  # (A*H, 1, D)
            x += layer.attn_proj(pad_rows(y.view(count, -1), len(x)))  # (P, C)
            x += layer.mlp_proj(layer.c_fc(layer.ln_2(x)))
        return self.weights.head(self.weights.ln_f(x))[:count]  # (A, V)

    def _masks(self, at: Tensor, length: int) -> dict[int, Tensor]:
        """Additive masks of the positions behind each row's token, by number of heads, (A*H, 1, L)."""
        mask = additive_mask(at, length, self._cache.dtype)[:, None]  # (A, 1, L)
        counts = {layer.n_head for layer in self.weights.layers}
        return {h: mask.expand(-1, h, -1).reshape(-1, 1, length) for h in counts}  # (A*H, 1, L) each


def least_positions(config: ModelConfig) -> int:
    """Compute the positions that attention covers at least, so that its matmuls have one order of their sums.

    Args:
        config: Shape of the model.

    Returns:
        Positions of a row of the KV cache, however short its sequence is.
    """
    return rounded(-(-_SMALL_MATMUL // min(config.head_dims)))


def padded_rows(count: int) -> int:
    """Return the number of rows that a step of some rows runs.

    Args:
        count: Rows in use, at least 1.

    Returns:
        The next of `ROW_COUNTS`, or a multiple of the last.
    """
    most = ROW_COUNTS[-1]
    return next((rows for rows in ROW_COUNTS if rows >= count), -(-count // most) * most)


class StaticStep:
    """Runs steps on buffers whose addresses stay, recorded as one CUDA graph for each number of rows.

    A step of a small model is hundreds of kernels, each shorter than its launch; replaying a graph launches them at
    once. A graph always runs the same shapes at the same addresses, so rows are padded to the next of a few counts, and
    attention covers a length that doubles. The padding writes its keys and values to a spare row of the cache. Without
    CUDA the same buffers are used without a graph, which is how tests cover them.

    Args:
        forward: Computes the logits of the tokens in the buffers.
        rows: Most rows in use.
        spare_row: Row of the cache for the padding.
        length: Positions of the cache.
        device: Device, as torch writes it.
    """

    def __init__(self, forward: _Forward, *, rows: int, spare_row: int, length: int, device: str) -> None:
        self._forward, self._spare_row, self._length, self._device = forward, spare_row, length, device
        most = padded_rows(rows)
        self._tokens, self._positions, self._rows = (
            torch.zeros(most, dtype=torch.long, device=device) for _ in range(3)
        )  # (P,) each
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # by P and length

    def run(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Run one token of every row in use.

        Args:
            tokens: Newest token of each row, A ids.
            positions: Index of that token in its sequence, A of them.

        Returns:
            Logits of the next tokens, (A, V).
        """
        count = len(tokens)
        rows = padded_rows(count)
        padding = rows - count
        self._fill(self._tokens, [*tokens, *[0] * padding])
        self._fill(self._positions, [*positions, *[0] * padding])
        self._fill(self._rows, [*range(count), *[self._spare_row] * padding])
        logits = self._replay(rows, self._attended(max(positions) + 1))  # (P, V)
        return logits[:count].clone()  # the next step overwrites the graph's tensor

    def _fill(self, buffer: Tensor, values: Sequence[int]) -> None:
        buffer[: len(values)].copy_(torch.tensor(values))

    def _attended(self, length: int) -> int:
        return min(max(1 << (length - 1).bit_length(), _GRAPH_LEAST), self._length)

    def _compute(self, rows: int, length: int) -> Tensor:
        return self._forward(self._tokens[:rows], self._positions[:rows], self._rows[:rows], length)  # (P, V)

    def _replay(self, rows: int, length: int) -> Tensor:
        if not self._device.startswith("cuda"):
            return self._compute(rows, length)  # (P, V)
        if (rows, length) not in self._graphs:
            self._graphs[rows, length] = self._record(rows, length)
        graph, logits = self._graphs[rows, length]
        graph.replay()
        return logits  # (P, V)

    def _record(self, rows: int, length: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record a graph; the run before it lets libraries allocate what they keep."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._compute(rows, length)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            logits = self._compute(rows, length)  # (P, V)
        return graph, logits
