"""The Fisher's sum of squares on CUDA: (O, I) += w * sum over images of (g^T a)^2, no image's product ever written.

A program owns a block of the (O, I) sum and walks over the images: a product in registers, squared, added. The plain
path (``squares.add_squares_by_products``) writes O x I numbers per image and reads them again. Nothing here is needed:
without Triton, or on another device, the plain path runs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64


TOKENS = 32


SPLITS = 8
"""Parts of the images walked over side by side; their sums are added in order, so that a run repeats itself."""


@triton.jit
def _squares(
    a,
    g,
    out,
    images,
    tokens,
    width,
    outputs,
    a_image,
    a_token,
    g_image,
    g_token,
    per_split,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    split = tl.program_id(2)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for image in range(split * per_split, tl.minimum(images, (split + 1) * per_split)):
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for first in range(0, tokens, TOKENS):
            n = first + tl.arange(0, TOKENS)
            left = tl.load(
                g + image * g_image + n[None, :] * g_token + o[:, None],
                mask=(n[None, :] < tokens) & (o[:, None] < outputs),
                other=0.0,
            )
            right = tl.load(
                a + image * a_image + n[:, None] * a_token + i[None, :],
                mask=(n[:, None] < tokens) & (i[None, :] < width),
                other=0.0,
            )
            product += tl.dot(left, right, input_precision=PRECISION)
        total += product * product
    place = split * outputs * width + o[:, None] * width + i[None, :]
    tl.store(out + place, total, mask=(o[:, None] < outputs) & (i[None, :] < width))


def add_squares(into: Tensor, a: Tensor, g: Tensor, weight: float = 1.0) -> None:
    """Into (O, I) += weight * sum over images of (g^T a)^2.

    Args:
        into: the running sum, changed in place, float32.
        a: layer inputs (B, N, I), float32 or bfloat16.
        g: output gradients (B, N, O), of the same type.
        weight: factor.
    """
    images, tokens, width = a.shape
    if not images:
        return
    outputs = g.shape[2]
    a, g = (x if x.stride(2) == 1 else x.contiguous() for x in (a, g))
    splits = min(SPLITS, images)
    partial = torch.empty(splits, outputs, width, device=into.device, dtype=torch.float32)
    grid = triton.cdiv(outputs, BLOCK), triton.cdiv(width, BLOCK), splits
    strides = a.stride(0), a.stride(1), g.stride(0), g.stride(1)
    per_split = triton.cdiv(images, splits)
    sizes = images, tokens, width, outputs
    how = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"  # bfloat16's products are exact
    _squares[grid](a, g, partial, *sizes, *strides, per_split, BLOCK=BLOCK, TOKENS=TOKENS, PRECISION=how)  # pyright: ignore[reportArgumentType]
    into.add_(partial.sum(0), alpha=weight)
