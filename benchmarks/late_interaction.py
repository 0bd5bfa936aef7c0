"""A contrastive update of a late-interaction model and an exact MaxSim search, beside sentence-transformers.

python -m benchmarks.late_interaction
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks import ours, peers
from benchmarks.report import Goal, Options, Report, load, parse, publish, ratio, row
from benchmarks.sides import Measured, Outcome, Side, Update, measure, require_same
from benchmarks.workloads import Row, minilm, web_search, write_contrastive

if TYPE_CHECKING:
    from rankpo.types import Vectors

QUERY_TOKENS, DIM, TOP_K, NUM_QUERIES = 32, 128, 100, 8
PASSAGE_TOKENS = (16, 80)  # of the searched passages, uniformly
PLAIN_TOKENS = 1_000_000  # more than an update has: its graph is kept
CACHED_TOKENS = 1024
OURS, CACHED = "ours, graph kept", "ours, gradient cache"
PEER, PEER_CACHED = "MultiVectorEncoder", "MultiVectorEncoder, cached"
SEARCH, PEER_SEARCH = "search: ours, from disk", "search: sentence-transformers, in memory"


def benchmark(options: Options) -> Report:
    updates, batch_size, length = (2, 3, 24) if options.quick else (4, 16, 300)
    work = web_search(updates * batch_size)
    number = options.updates or (1 if options.quick else 3)
    found = compare_updates(work.rows, batch_size, length, options, number)
    documents = 500 if options.quick else 100_000
    searched = compare_searches(documents, options, number)
    plain, cached = found[PEER], found[PEER_CACHED]
    goals = [
        Goal("update, plain loss", ratio(plain, found[OURS]), 2.0, unit=" x"),
        Goal("update, cached loss", ratio(cached, found[CACHED]), 1.3, unit=" x"),
        Goal("search", ratio(searched[PEER_SEARCH], searched[SEARCH]), 2.0, unit=" x"),
    ]
    if found[CACHED].peak is not None and cached.peak is not None:
        goals.append(
            Goal("peak memory of ours cached, theirs as the goal", found[CACHED].peak, cached.peak, True, " GB")
        )
    return Report(
        "late_interaction",
        f"{batch_size} queries of {QUERY_TOKENS} tokens x (1 + 5) candidates of at most {length} tokens from {work.origin}, "
        f"MiniLM and a projection to {DIM} dimensions in float32, InfoNCE on MaxSim over all candidates; then the top "
        f"{TOP_K} of {documents:,} passages of {PASSAGE_TOKENS[0]} to {PASSAGE_TOKENS[1]} random token vectors for "
        f"{NUM_QUERIES} queries.",
        [row(side) for side in (*found.values(), *searched.values())],
        goals,
    )


def compare_updates(
    rows: Sequence[Row], batch_size: int, length: int, options: Options, updates: int
) -> Mapping[str, Measured]:
    """Ours and sentence-transformers, plain and cached, from one folder; their losses are the same or this raises."""
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        folder = multi_vector_folder(Path(name), minilm(Path(name), tiny=options.quick), length)
        data = write_contrastive(Path(name) / "rows.jsonl", rows)
        overrides = [
            "model=base",
            "kind=late_interaction",
            f"model.load_from={folder}",
            f"trainer.batch_size={batch_size}",
            f"dataloader.num_negatives={len(rows[0].candidates) - 1}",
            *ours.SAME_AS_PEERS,
            "loss.temperature=1",
        ]
        budgets = {OURS: PLAIN_TOKENS, CACHED: 64 if options.quick else CACHED_TOKENS}
        common = {"folder": folder, "rows": rows, "batch_size": batch_size}
        sides = [
            *(
                Side(
                    title, ours.trainer_update, {"overrides": [*overrides, f"trainer.max_tokens={size}"], "data": data}
                )
                for title, size in budgets.items()
            ),
            Side(PEER, peers.multi_vector_update, common),
            Side(PEER_CACHED, peers.multi_vector_update, {**common, "mini_batch": 32}),
        ]
        found = measure(sides, updates, options.threads, options.isolated)
    for title in list(found)[1:]:
        require_same(found[OURS], found[title])
    return found


def multi_vector_folder(folder: Path, weights: str, length: int) -> str:
    """A folder of sentence-transformers' MultiVectorEncoder with a random projection, for both sides."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    torch.manual_seed(0)
    expansion = {"strategy": "fixed", "length": QUERY_TOKENS}
    body = Transformer(weights, document_length=length, query_expansion=expansion)
    width, place = body.get_embedding_dimension(), "token_embeddings"
    dense = Dense(width, DIM, bias=False, activation_function=torch.nn.Identity(), module_input_name=place)
    modules = [body, dense, MultiVectorMask(), Normalize(place)]
    MultiVectorEncoder(modules=modules, device="cpu").save(str(folder / "multi_vector"))
    return str(folder / "multi_vector")


def compare_searches(documents: int, options: Options, updates: int) -> Mapping[str, Measured]:
    """Both sides over the same vectors; the mean scores of their hits are the same or this raises."""
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        write_vectors(Path(name), documents)
        sides = [
            Side(SEARCH, our_search, {"folder": name}),
            Side(PEER_SEARCH, their_search, {"folder": name}),
        ]
        found = measure(sides, updates, options.threads, options.isolated)
    require_same(found[SEARCH], found[PEER_SEARCH])
    return found


def write_vectors(folder: Path, documents: int) -> None:
    """A folder as task=encode writes it, of random token vectors of length 1."""
    import torch

    from rankpo.retrieval.shards import Encoding, save_token_shard, write_meta
    from rankpo.types import Vectors

    generator = torch.Generator().manual_seed(0)
    size = 8192
    fields = ("random", "random", "random", "passage", documents, DIM, "float32", size, {})
    encoding = Encoding(*fields, form="tokens")
    for shard in range(encoding.num_shards):
        count = encoding.rows_of(shard)
        counts = torch.randint(PASSAGE_TOKENS[0], PASSAGE_TOKENS[1] + 1, (count,), generator=generator)
        rows = torch.nn.functional.normalize(torch.randn(int(counts.sum()), DIM, generator=generator), dim=1)
        ids = [str(shard * size + number) for number in range(count)]
        save_token_shard(folder, shard, ids, Vectors(rows, counts), "float32")
    write_meta(folder, encoding, complete=True)


def queries_of(step: int) -> Vectors:
    import torch

    from rankpo.types import Vectors

    generator = torch.Generator().manual_seed(step + 1)
    rows = torch.randn(NUM_QUERIES * QUERY_TOKENS, DIM, generator=generator)
    counts = torch.full((NUM_QUERIES,), QUERY_TOKENS, dtype=torch.int64)
    return Vectors(torch.nn.functional.normalize(rows, dim=1), counts)


def our_search(folder: str) -> Update:
    from rankpo.models.engine.maxsim import maxsim
    from rankpo.retrieval.ragged import search_stored
    from rankpo.retrieval.stored import TokenEmbeddings

    corpus = TokenEmbeddings(Path(folder))

    def update(step: int) -> Outcome:
        scores, _ = search_stored(queries_of(step), corpus.blocks(), maxsim, TOP_K)
        return Outcome(value=float(scores.mean()))

    return update


def their_search(folder: str) -> Update:
    """As its InformationRetrievalEvaluator searches: queries padded once, MaxSim and the top k chunk by chunk."""
    import torch
    from sentence_transformers.util.similarity import maxsim

    from rankpo.retrieval.stored import TokenEmbeddings

    def parts() -> Iterator[torch.Tensor]:
        for block in TokenEmbeddings(Path(folder)).blocks():
            yield from block.rows.clone().split(block.counts.tolist())

    documents = list(parts())

    def update(step: int) -> Outcome:
        queries = queries_of(step).rows.view(NUM_QUERIES, QUERY_TOKENS, DIM)
        best = torch.empty(NUM_QUERIES, 0)
        for start in range(0, len(documents), 50_000):
            scores = maxsim(queries, documents[start : start + 50_000])
            best = torch.cat([best, scores], 1).topk(min(TOP_K, best.shape[1] + scores.shape[1]), dim=1).values
        return Outcome(value=float(best.mean()))

    return update


if __name__ == "__main__":
    chosen, before = parse("benchmarks.late_interaction"), load()
    publish(benchmark(chosen), chosen, before)
