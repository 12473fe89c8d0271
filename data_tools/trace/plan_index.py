"""What an index will be made of: its parts within the memory that was given, and everything that speaks against it."""

import bisect
import itertools
import math
import os
import shutil
from pathlib import Path

from data_tools.datasets import find_document_files
from data_tools.trace.codes import MAX_VOCAB
from data_tools.trace.config import IndexConfig
from data_tools.trace.index_folder import NAME, PLAN, PartRange, Plan, read_index_manifest, read_plan
from data_tools.trace.suffixes import memory_bound
from olmo_train.data.manifest import manifest_path
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ShardError

GIB = 2**30
BASE_BYTES = 224 * 2**20
"""A process that has not begun to sort: Python, numpy, numba with its compiled loops."""
MAX_TOKENS = 2**32 - 2
"""Positions are uint32."""
MAX_PARTS = 20_000
"""Each is asked by every search."""
BYTES_PER_TOKEN = 4.3
"""On disk: positions, leading ranks, and some room."""


def index_folder_of(shards: str | Path) -> Path:
    """Where the index of a manifest lies unless told otherwise."""
    return manifest_path(shards).parent / "trace"


def folder_of(config: IndexConfig) -> Path:
    """Where this index goes."""
    return Path(config.output) if config.output is not None else index_folder_of(config.shards)


def plan_of(config: IndexConfig, corpus: Corpus) -> Plan:
    """What the config asks for. Without `processes`, one part may take all of the memory, and fewer parts are built at once."""
    per_process = config.memory_gib * GIB / (config.processes or 1)
    return Plan(corpus.manifest.fingerprint(), config.max_tokens_per_part, int(per_process) - BASE_BYTES)


def memory_of(corpus: Corpus, part: PartRange) -> int:
    """Bytes that sorting this part takes at most."""
    index = corpus.files[part.file].index
    return memory_bound(part.end - part.start, len(index.documents_between(part.start, part.end)), corpus.manifest.itemsize)


def plan_parts(corpus: Corpus, plan: Plan) -> list[PartRange]:
    """Whole documents of each file, about equally many tokens in each of its parts; a longer document is a part alone."""
    parts: list[PartRange] = []
    for number, file in enumerate(corpus.files):
        cuts = _cuts(file, plan, corpus.manifest.itemsize)
        parts += [PartRange(len(parts) + n, number, a, b) for n, (a, b) in enumerate(itertools.pairwise(cuts))]
    return parts


def _cuts(file: ShardFile, plan: Plan, itemsize: int) -> list[int]:
    """Token offsets at which parts of a file begin, and its end."""
    starts, n_tokens, n_documents = file.index.starts, file.entry.tokens, file.entry.documents
    if not n_tokens:
        return []

    def memory(tokens: int, documents: int) -> int:
        return memory_bound(tokens, documents, itemsize)

    share = n_documents / n_tokens
    fitting = bisect.bisect_right(range(n_tokens + 1), plan.max_bytes, key=lambda n: memory(n, math.ceil(n * share))) - 1
    most = max(1, min(fitting, plan.max_tokens))
    cuts, first = [0], 0
    while cuts[-1] < n_tokens:
        begin, ordinals = cuts[-1], range(first, n_documents + 1)
        left = n_tokens - begin
        wanted = math.ceil(left / math.ceil(left / most))
        by_tokens = bisect.bisect_right(ordinals, begin + wanted, key=lambda d: int(starts[d]))
        by_memory = bisect.bisect_right(
            ordinals,
            plan.max_bytes,
            key=lambda d, b=begin, f=first: memory(int(starts[d]) - b, d - f),  # type: ignore[misc]
        )
        last = first + min(by_tokens, by_memory) - 1
        if last <= first or int(starts[last]) == begin:
            last = bisect.bisect_right(ordinals, begin, key=lambda d: int(starts[d])) + first
        cuts.append(int(starts[last]))
        first = last
    return cuts


def problems_of(config: IndexConfig) -> list[str]:
    """Everything that speaks against building this index; nothing is written or allocated for it."""
    problems = _problems_of_numbers(config)
    try:
        corpus = Corpus(config.shards)
    except ShardError as error:
        return [*problems, f"shards={config.shards}: {error}"]
    problems += corpus.verify("size") + _problems_of_documents(config)
    if corpus.manifest.vocab_size > MAX_VOCAB:
        problems.append(f"shards={config.shards}: {corpus.manifest.vocab_size} ids; an index takes up to {MAX_VOCAB}")
    if problems:
        return problems
    plan = plan_of(config, corpus)
    problems = _problems_of_folder(config, corpus, plan)
    parts = plan_parts(corpus, plan)
    if len(parts) <= MAX_PARTS:
        return problems + [text for part in parts for text in _problems_of_part(config, corpus, plan, part)]
    return [
        *problems,
        (
            f"max_tokens_per_part={config.max_tokens_per_part} and memory_gib={config.memory_gib} make {len(parts):,} parts; "
            f"every search asks each of them, and at most {MAX_PARTS:,} are allowed: raise them"
        ),
    ]


def _problems_of_numbers(config: IndexConfig) -> list[str]:
    problems = []
    if not 1 <= config.max_tokens_per_part <= MAX_TOKENS:
        problems.append(f"max_tokens_per_part={config.max_tokens_per_part} is not in [1, {MAX_TOKENS}]; 67_108_864 is usual")
    if config.processes is not None and config.processes < 1:
        problems.append(f"processes={config.processes} must be positive; null takes one per core")
    n = max(1, config.processes or 1)
    if not config.memory_gib * GIB / n >= 2 * BASE_BYTES:
        problems.append(
            f"memory_gib={config.memory_gib} for {n} processes is too little: a process takes {BASE_BYTES / GIB:.2f} GiB before "
            f"it sorts; give at least {math.ceil(20 * BASE_BYTES * n / GIB) / 10}, or fewer processes"
        )
    if config.n_tasks < 1:
        problems.append(f"n_tasks={config.n_tasks} must be positive")
    elif config.task is None and config.n_tasks > 1:
        problems.append(f"n_tasks={config.n_tasks} without task=; each task must know its number: task=$SLURM_ARRAY_TASK_ID")
    elif config.task is not None and not 0 <= config.task < config.n_tasks:
        problems.append(f"task={config.task} is not in [0, n_tasks={config.n_tasks}); tasks count from 0 (sbatch --array=0-N)")
    return problems


def _problems_of_documents(config: IndexConfig) -> list[str]:
    try:
        if config.documents:
            find_document_files(config.documents)
    except ShardError as error:
        return [str(error)]
    return []


def _problems_of_folder(config: IndexConfig, corpus: Corpus, plan: Plan) -> list[str]:
    """What lies in the folder must be of the same shards and of the same plan, and the rest must have room."""
    folder = folder_of(config)
    if folder.exists() and not folder.is_dir():
        return [f"output={folder} is a file; give a folder"]
    found = read_plan(folder)
    finished = read_index_manifest(folder) if (folder / NAME).exists() else None
    for name, of in ((PLAN, found), (NAME, finished)):
        if of is not None and of.fingerprint != plan.fingerprint:
            return [
                (
                    f"{folder / name} is of shards with fingerprint {of.fingerprint[:16]}..., {corpus.folder} has "
                    f"{plan.fingerprint[:16]}...: parts of both must not mix; remove {folder}, or give another output="
                )
            ]
    if finished is not None:
        return []
    if found is None and any(folder.glob("part-*.json")):
        return [f"{folder} holds parts, but no {PLAN} that says of which shards; remove {folder}, or give another output="]
    if found is not None and (found.max_tokens != plan.max_tokens or found.max_bytes > plan.max_bytes):
        return [
            (
                f"{folder} was begun with max_tokens_per_part={found.max_tokens} and {_gib(found)} GiB "
                f"per process; now it is {plan.max_tokens} and {_gib(plan)} GiB; go on with the same "
                f"(or more memory), or remove {folder}"
            )
        ]
    return _problems_of_room(folder, corpus)


def _gib(plan: Plan) -> str:
    """Of a process."""
    return f"{(plan.max_bytes + BASE_BYTES) / GIB:.2f}"


def _problems_of_room(folder: Path, corpus: Corpus) -> list[str]:
    there = sum(path.stat().st_size for path in folder.glob("part-*.sa"))
    needed = int(sum(file.entry.tokens for file in corpus.files) * BYTES_PER_TOKEN) - there
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if needed <= free:
        return []
    return [
        f"{folder}: the index takes about {needed / GIB:.1f} GiB, {free / GIB:.1f} are free; make room, or give another output="
    ]


def _problems_of_part(config: IndexConfig, corpus: Corpus, plan: Plan, part: PartRange) -> list[str]:
    need, file = memory_of(corpus, part), corpus.files[part.file]
    if need <= plan.max_bytes and part.end - part.start <= MAX_TOKENS:
        return []
    row = file.index.row(file.index.documents_between(part.start, part.end).start)
    document = f"document {row.id!r} ({file.path}, {part.end - part.start} tokens)"
    if part.end - part.start > MAX_TOKENS:
        return [f"{document} is longer than {MAX_TOKENS} tokens, which positions of 4 bytes reach; cut it before tokenizing"]
    least = math.ceil(100 * (need + BASE_BYTES) * (config.processes or 1) / GIB) / 100
    return [
        (
            f"memory_gib={config.memory_gib}: {document} is sorted whole, which takes {(need + BASE_BYTES) / GIB:.2f} GiB "
            f"in one process; give at least memory_gib={least}, or fewer processes"
        )
    ]


def n_processes(config: IndexConfig, corpus: Corpus, parts: list[PartRange]) -> int:
    """How many build these parts at once: as asked, or one per core while all fit into memory."""
    if not parts:
        return 1
    need = BASE_BYTES + max(memory_of(corpus, part) for part in parts)
    wanted = config.processes or min(len(os.sched_getaffinity(0)), int(config.memory_gib * GIB / need))
    return max(1, min(wanted, len(parts)))
