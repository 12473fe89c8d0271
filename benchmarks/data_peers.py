"""datatrove's side of benchmarks/data.py; run by the Python that has datatrove: STAGE FILES_FOLDER OUT TOKENIZER WORKERS.

Uses its public blocks as its own examples do; `spacy` must be installed for MinHash.
"""

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter


def main() -> None:
    stage, documents, out, tokenizer, workers_text = sys.argv[1:]
    workers = int(workers_text)
    reader = JsonlReader(documents, glob_pattern="*.jsonl.gz")
    n_files = len(reader.data_folder.list_files(glob_pattern="*.jsonl.gz"))

    def run(steps: list, name: str, tasks: int, at_once: int = workers) -> None:
        executor = LocalPipelineExecutor(steps, tasks=tasks, workers=min(at_once, tasks), logging_dir=f"{out}/logs-{name}")
        executor.run()

    if stage == "tokenize":
        block = DocumentTokenizer(f"{out}/tokens", tokenizer, eos_token="<|endoftext|>", batch_size=1000, seed=1)
        run([reader, block], stage, n_files)
    elif stage == "minhash":
        run([reader, MinhashDedupSignature(f"{out}/signatures")], "signatures", n_files)
        run([MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets")], "buckets", 14)
        run([MinhashDedupCluster(f"{out}/buckets", f"{out}/removed")], "clusters", 1)
        run([reader, MinhashDedupFilter(f"{out}/removed"), JsonlWriter(f"{out}/kept")], "filter", n_files)
    elif stage == "rules":
        filters = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]
        run([reader, *filters, JsonlWriter(f"{out}/kept")], stage, n_files)
    else:
        raise SystemExit(f"{stage}: not one of tokenize, minhash, rules")


if __name__ == "__main__":
    main()
