"""The networks. This package imports torch and nothing else of ours.

One contract: `forward(photo [B, D], pool, index [B, K] or None, similarity [B, K] or None, keep [B, K] or None)
-> log p [B, S]`. Tensors only, so that data-parallel wrappers and exporters see nothing else.
"""
