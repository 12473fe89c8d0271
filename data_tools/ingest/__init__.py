"""Anything to Dolma documents: JSONL, Parquet, text, source trees, WARC and HTML, Hugging Face datasets."""
