"""Attention and rotary position embedding, as the operators of opset 23 and later compute them."""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.model.torch_table import DTYPES, operator


@operator("Attention", many=True)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """softmax(q kᵀ · scale + mask) v for every head (Vaswani et al., 2017, arXiv:1706.03762, section 3.2).

    q [n, heads, steps, width], or [n, steps, heads·width] with the numbers of heads; k and v may have fewer heads, each of which serves
    as many of q's. Returns the result in q's form, the keys and values with the past before them, and the scores at the asked stage."""
    flat = q.ndim == 3
    if flat:
        q, k, v = _by_head(q, q_num_heads), _by_head(k, kv_num_heads), _by_head(v, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    k = k if past_key is None else torch.cat([past_key, k], 2)
    v = v if past_value is None else torch.cat([past_value, v], 2)
    each = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
    root = (q.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    products = torch.matmul(q * root, keys.transpose(2, 3) * root)
    capped = torch.tanh(products / softcap) * softcap if softcap else products
    allowed, bias = _masks(capped, attn_mask, past, nonpad_kv_seqlen, bool(is_causal))
    masked = (capped if bias is None else capped + bias).masked_fill(~allowed, -torch.inf)
    shares = torch.softmax(masked, -1, dtype=None if softmax_precision is None else DTYPES[softmax_precision]).to(q.dtype)
    # A row without a single key would be NaN.
    shares = torch.where((masked > -torch.inf).any(-1, keepdim=True), shares, 0.0)
    result = torch.matmul(shares, values)
    stages = (products, capped, masked, shares)
    return (result.transpose(1, 2).flatten(2) if flat else result), k, v, stages[qk_matmul_output_mode]


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[n, steps, heads·width] to [n, heads, steps, width]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _masks(scores: Tensor, mask: Tensor | None, past: int, lengths: Tensor | None, causal: bool) -> tuple[Tensor, Tensor | None]:
    """Which keys each query may see, and what is added to its scores."""
    steps, count = scores.shape[-2:]
    allowed = torch.ones(1, 1, steps, count, dtype=torch.bool, device=scores.device)
    keys = torch.arange(count, device=scores.device)
    if lengths is not None:
        allowed = allowed & (keys < lengths.reshape(-1, 1, 1, 1))
    if causal:
        offset = past if lengths is None else lengths.reshape(-1, 1, 1, 1) - steps
        allowed = allowed & (keys <= torch.arange(steps, device=scores.device).unsqueeze(1) + offset)
    if mask is None:
        return allowed, None
    short = count - mask.shape[-1]
    if mask.dtype == torch.bool:
        return allowed & torch.nn.functional.pad(mask, (0, short)), None
    return allowed, torch.nn.functional.pad(mask, (0, short), value=-torch.inf)


@operator("RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Turns pairs of numbers by an angle that grows with the position (Su et al., 2021, arXiv:2104.09864, section 3.2.2).

    x [n, heads, steps, width] or [n, steps, heads·width]; cosines and sines [positions, width/2] with position_ids [n, steps],
    else [n, steps, width/2]."""
    flat = x.ndim == 3
    heads = _by_head(x, num_heads) if flat else x
    width = rotary_embedding_dim or heads.shape[-1]
    turned, kept = heads[..., :width], heads[..., width:]
    cos, sin = (table if position_ids is None else table[position_ids.long()] for table in (cosines, sines))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = (cos * a - sin * b, sin * a + cos * b)
    joined = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    result = torch.cat([joined, kept], -1)
    return result.transpose(1, 2).flatten(2) if flat else result
