"""Pretrain dense and mixture-of-experts transformers: token shards in, step folders out."""
