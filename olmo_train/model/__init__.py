"""The transformer, as single-device code; parallelism is applied from outside.

Shape suffixes, here and in `olmo_train.kernels`:
    B sequences, T positions, D d_model, H heads, G kv heads, C d_head, F hidden width, V vocabulary rows,
    N tokens (B * T), E experts, K top_k, S routed slots (N * K), L layers.
A tensor named `x_BTD` has shape (B, T, D).
"""
