"""Attention whose projections are linear layers, in place of ``nn.MultiheadAttention``.

An adapter trains the weights of linear layers. ``nn.MultiheadAttention`` holds its projections in one parameter and
reads it itself; what stands here in its place computes the same with a fused ``qkv`` and a ``proj``.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.backbones.names import NO_BLOCK


class SelfAttention(nn.Module):
    """The same as a ``nn.MultiheadAttention`` whose query, key and value are one tensor.

    Args:
        plain: what it stands for; its numbers are copied.
    """

    batch_first = False  # read by nn.TransformerEncoderLayer, which then calls it as any other module
    in_proj_bias = None

    def __init__(self, plain: nn.MultiheadAttention) -> None:
        super().__init__()
        assert isinstance(plain.in_proj_weight, Tensor)
        width = plain.embed_dim
        like = {"device": plain.in_proj_weight.device, "dtype": plain.in_proj_weight.dtype}
        self.heads, self.rows_are_images, self.dropout = plain.num_heads, plain.batch_first, plain.dropout
        self.qkv = nn.Linear(width, 3 * width, bias=plain.in_proj_bias is not None, **like)
        self.qkv.weight = nn.Parameter(plain.in_proj_weight.detach())
        if plain.in_proj_bias is not None:
            self.qkv.bias = nn.Parameter(plain.in_proj_bias.detach())
        self.proj = nn.Linear(width, width, bias=plain.out_proj.bias is not None, **like)
        self.proj.load_state_dict(plain.out_proj.state_dict())

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, None]:
        """Like ``nn.MultiheadAttention`` without masks: (output, None); layout (B, N, D) if it was ``batch_first``.

        Raises:
            ValueError: there is a mask, or the tensors are not one: no image network has them.
        """
        masks = ("attn_mask", "key_padding_mask")
        if key is not value or query is not key or any(options.get(mask) is not None for mask in masks):
            raise ValueError("attention with a mask, or between different tensors: expected plain self-attention")
        x = query if self.rows_are_images else query.transpose(0, 1)
        images, tokens, width = x.shape
        q, k, v = self.qkv(x).view(images, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        out = self.proj(out.transpose(1, 2).reshape(images, tokens, width))
        return (out if self.rows_are_images else out.transpose(0, 1)), None


def open_attention(model: nn.Module) -> int:
    """Put ``SelfAttention`` in the place of every ``nn.MultiheadAttention`` in blocks, in place; how many there were.

    One with separate key or value widths, added biases or a zero token is left as it is, and so is one that pools:
    a query of its own beside the tokens.
    """
    count = 0
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and not NO_BLOCK.search(f"{path}."):
            plain = module.bias_k is None and not module.add_zero_attn and module.in_proj_weight is not None
            if plain:
                parent, _, leaf = path.rpartition(".")
                setattr(model.get_submodule(parent), leaf, SelfAttention(module))
                count += 1
    return count
