"""Checkpoints in other formats: Hugging Face folders, step folders, OLMo-core, GGUF; each written whole or not at all."""
