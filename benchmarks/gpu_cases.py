"""Parts of `benchmarks.gpu`: shapes, texts, updates with their time and memory, and peers."""

from __future__ import annotations

import gc
import importlib.util
import random
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

import rankpo
from benchmarks import peers
from benchmarks.arithmetic import training_gflop
from benchmarks.ours import build_trainer
from benchmarks.workloads import Row, write_contrastive, write_pairs
from rankpo.models.engine import flex, varlen
from rankpo.models.engine.packing import attend_by_length
from rankpo.trainers.transfer import UpdatesAhead, transfer_to

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.sides import Update

QWEN3 = {"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936}  # fmt: skip
MODERNBERT = {"model_type": "modernbert", "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
              "intermediate_size": 1152, "vocab_size": 50368}  # fmt: skip
LLAMA_1B = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256,
            "tie_word_embeddings": True}  # fmt: skip
LLAMA_8B = {
    **LLAMA_1B,
    "tie_word_embeddings": False,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "intermediate_size": 128, "vocab_size": 300}  # fmt: skip
SMALL_KINDS = {
    "embedding, contrastive": ("loss=contrastive", "datasets=[toy_contrastive]", "model=tiny_bert"),
    "embedding, rankpo": ("loss=rankpo", "datasets=[toy_pairs]", "model=tiny_llama", "kind=embedding"),
    "reranker, softmax": ("loss=softmax", "datasets=[toy_lists]", "model=tiny_bert"),
    "causal_lm, dpo": ("loss=dpo", "datasets=[toy_chat]", "model=tiny_llama", "trainer.reference=live"),
    "listwise, combined": ("loss=listwise_combined", "datasets=[toy_lists]", "model=tiny_llama"),
}
UPDATES, WARM_UP = 3, 2


@dataclass(frozen=True)
class Measured:
    """Updates of one side. seconds: the median of an update. gflop: useful arithmetic of one; 0 where not counted."""

    name: str
    seconds: float
    tokens: float
    gflop: float
    gigabytes: float

    def row(self, rate: float) -> dict[str, Any]:
        """rate: the bf16 matrix rate of the device, GFLOP/s."""
        return {
            "case": self.name,
            "median s": self.seconds,
            "tokens/s": self.tokens / self.seconds if self.tokens else None,
            "share of the matrix rate": self.gflop / self.seconds / rate if self.gflop else None,
            "peak GB": self.gigabytes,
        }


@dataclass(frozen=True)
class Work:
    """Records for the trainer, and the same rows for peers. length: the longest text, in tokens. batch_size: queries."""

    data: Path
    rows: Sequence[Row]
    length: int
    batch_size: int


def on_gpu() -> bool:
    return torch.cuda.is_available()


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def device_in_words() -> str:
    if not on_gpu():
        return "no CUDA device: the CPU ran tiny shapes"
    found = torch.cuda.get_device_properties(0)
    return (
        f"{found.name}, {found.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}, bf16 matrix products "
        f"{matrix_rate(False) / 1e3:.0f} TFLOP/s in this run"
    )


def release() -> None:
    """Gives the memory of an ended case back, and forgets its Accelerator, whose precision the next may not share."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()


def synchronize() -> None:
    if on_gpu():
        torch.cuda.synchronize()


def matrix_rate(quick: bool) -> float:
    """GFLOP/s of products of square bfloat16 matrices: what an update is compared with."""
    size, count = (256, 2) if quick or not on_gpu() else (8192, 20)
    device = "cuda" if on_gpu() else "cpu"
    left, right = torch.rand(2, size, size, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(3):
        synchronize()
        started = time.perf_counter()
        for _ in range(count):
            left @ right
        synchronize()
        best = max(best, count * 2 * size**3 / 1e9 / (time.perf_counter() - started))
    return best


# Weights and texts.


def write_weights(folder: Path, shape: dict[str, Any], quick: bool) -> str:
    """A folder with random bfloat16 weights of the shape, drawn on the device, and a tokenizer of bytes."""
    from transformers import AutoConfig, AutoModel

    from rankpo.models.random_weights import byte_tokenizer

    keys = {**shape, **TINY} if quick else {**shape, "max_position_embeddings": 8192}
    if shape["model_type"] == "modernbert":
        keys = {name: value for name, value in keys.items() if name not in ("num_key_value_heads", "head_dim")}
    tokenizer = byte_tokenizer()
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = AutoConfig.for_model(**keys, **special)
    torch.manual_seed(0)
    with torch.device("cuda" if on_gpu() else "cpu"):
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    release()
    return str(folder)


def draw_text(draw: random.Random, length: int) -> str:
    """Random letters, each a token of its own."""
    return "".join(draw.choices(string.ascii_lowercase, k=max(1, length)))


def web_search(folder: Path, quick: bool) -> Work:
    """64 queries x 8 with lengths like T2Ranking's: queries of about 12 tokens, passages of 40 to 512, mean 280."""
    queries, candidates, longest = (4, 3, 48) if quick else (64, 8, 512)
    draw = random.Random("web search")

    def passage() -> str:
        return draw_text(draw, min(longest, int(draw.lognormvariate(5.4, 0.6))))

    count = queries * (WARM_UP + UPDATES)
    rows = [
        Row(draw_text(draw, draw.randint(6, 20)), tuple(passage() for _ in range(candidates))) for _ in range(count)
    ]
    return Work(write_contrastive(folder / "rows.jsonl", rows), rows, longest, queries)


def long_pairs(folder: Path, quick: bool, pairs: int = 16) -> Work:
    """Preference pairs of passages of up to 4,096 tokens, as RankPO's profiles."""
    pairs, longest = (2, 64) if quick else (pairs, 4096)
    draw = random.Random("long pairs")
    rows = [
        Row(
            draw_text(draw, longest // 4), tuple(draw_text(draw, draw.randint(longest // 3, longest)) for _ in range(2))
        )
        for _ in range(pairs * (WARM_UP + UPDATES))
    ]
    return Work(write_pairs(folder / "pairs.jsonl", rows), rows, longest, pairs)


# Our side.


def ours(name: str, weights: str, work: Work, *overrides: str) -> Measured:
    """Updates of the trainer that the overrides give."""
    given = [
        *("model=base", f"model.name_or_path={weights}", f"trainer.batch_size={work.batch_size}"),
        *("datasets=[rankpo]", f"datasets.rankpo.path={work.data}", *overrides),
    ]
    kinds = [override for override in overrides if override.startswith("kind=")]
    if not kinds or kinds == ["kind=embedding"]:
        sizes = [f"model.{role}_max_length={work.length}" for role in ("query", "passage")]
        given += [*sizes, *([] if kinds else ["kind=embedding"])]
    else:
        given.append(f"model.max_length={2 * work.length}")
        given += [f"model.max_prompt_length={work.length}"] if kinds == ["kind=causal_lm"] else []
    if "loss=contrastive" in overrides:
        given.append(f"dataloader.num_negatives={len(work.rows[0].candidates) - 1}")
    release()
    trainer, folder = build_trainer(given)
    lengths: list[list[int]] = []

    ahead = UpdatesAhead(trainer.prepare, WARM_UP + UPDATES, transfer_to(trainer.policy.device))

    def update(step: int) -> None:
        prepared = ahead.get(step)
        parts = [prepared.batch] if "batch" in vars(prepared) else [item.batch for item in prepared.micro_batches]
        lengths.append([length for part in parts for length in part.sequences.lengths.tolist()])
        trainer.train_step(prepared)

    causal = trainer.policy.kind != "embedding" or trainer.policy.settings.pooling == "last"
    try:
        seconds, gigabytes = timed(update)
    finally:
        ahead.close()
        folder.cleanup()
    last = lengths[-1]
    gflop = training_gflop(trainer.policy.base, last, causal)
    return Measured(name, seconds, sum(last), gflop, gigabytes)


def timed(update: Callable[[int], object]) -> tuple[float, float]:
    """The median seconds of an update, and the largest memory of the device in GB."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    taken = []
    for step in range(WARM_UP + UPDATES):
        synchronize()
        started = time.perf_counter()
        update(step)
        synchronize()
        taken.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu() else 0.0
    return sorted(taken[WARM_UP:])[UPDATES // 2], peak


# Agreement.


def small_updates(folder: Path) -> dict[str, tuple[str, ...]]:
    """Overrides of one small update of each kind."""
    more = ("trainer.batch_size=6", f"cache_dir={folder}", "trainer.max_tokens=400", "optimizer=sgd")
    return {name: (*options, *more) for name, options in SMALL_KINDS.items()}


def gradients(overrides: Sequence[str], *more: str, on_cpu: bool = False) -> dict[str, Tensor]:
    """The gradient of the first update by parameter name, on the CPU, and the loss under the name "loss"."""
    release()
    trainer, folder = build_trainer([*overrides, *more])
    if on_cpu:
        trainer.policy.to("cpu")
        if trainer.reference is not None and "model" in vars(trainer.reference):
            vars(trainer.reference)["model"].to("cpu")
    trainer.backward(trainer.begin(trainer.prepare(0)))
    found = {n: p.grad.detach().float().cpu() for n, p in trainer.policy.named_parameters() if p.grad is not None}
    trainer.running.end_update()
    loss = trainer.running.result(lambda tensor: tensor)["loss"]
    folder.cleanup()
    return {**found, "loss": torch.tensor([loss])}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference of two gradients over the norm of the first, or that of the losses if it is larger."""
    names = [name for name in one if name != "loss"]
    whole = torch.stack([one[name].norm() for name in names]).norm()
    apart = torch.stack([(one[name] - other[name]).norm() for name in names]).norm()
    of_loss = (one["loss"] - other["loss"]).abs() / one["loss"].abs().clamp(min=1e-6)
    return max(float(apart / whole), float(of_loss))


# Peers.


PEER_FORMS = {"plain": None, "cached by 32": 32}  # The texts of a part of sentence-transformers' losses.


def sentence_transformers(form: str, weights: str, work: Work, shape: dict[str, Any]) -> Measured:
    """sentence-transformers' plain or cached loss under bf16 autocast. form: of PEER_FORMS."""
    pooling = "mean" if shape["model_type"] == "modernbert" else "last"
    update = peers.sentence_transformers_update(
        folder=weights, rows=work.rows, batch_size=work.batch_size, pooling=pooling, query_length=work.length,
        passage_length=work.length, mini_batch=PEER_FORMS[form],
    )  # fmt: skip
    seconds, gigabytes = timed(under_autocast(update))
    return Measured(f"sentence-transformers, {form}", seconds, 0, 0, gigabytes)


def under_autocast(update: Update) -> Callable[[int], object]:
    """The update under bf16 autocast."""

    def run(step: int) -> object:
        with torch.autocast("cuda" if on_gpu() else "cpu", dtype=torch.bfloat16):
            return update(step)

    return run


def encoding(side: str, weights: str, quick: bool) -> float:
    """Texts a second of `ours` or of sentence-transformers."""
    draw = random.Random("encoding")
    texts = [draw_text(draw, min(512, int(draw.lognormvariate(5.0, 0.7)))) for _ in range(20 if quick else 20_000)]
    if side == "ours":
        return _texts_per_second(rankpo.load(weights), texts)
    return _texts_per_second(peers.sentence_transformer(weights, "mean", 512), texts, show_progress_bar=False)


def _texts_per_second(model: Any, texts: list[str], **options: object) -> float:
    """Texts a second of the second call under bf16 autocast, since the first one also warms up."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        model.encode(texts, **options)
        synchronize()
        started = time.perf_counter()
        model.encode(texts, **options)
        synchronize()
        return len(texts) / (time.perf_counter() - started)


# Attention.


def attention(way: str, kind: str, quick: bool) -> dict[str, Any]:
    """Packed causal attention of 16 heads of 64 over passages of web search, forward and backward.

    way: `varlen`, `flex`, or `lengths` for the loop. Returns the seconds, and the largest difference from the loop in
    float32, of the output and of the gradient of the queries.
    """
    draw = random.Random("attention")
    lengths = sorted(
        (min(512, int(draw.lognormvariate(5.4, 0.6))) + 1 for _ in range(4 if quick else 256)), reverse=True
    )
    device = torch.device("cuda" if on_gpu() else "cpu")
    torch.manual_seed(0)
    exact = torch.randn(3, 1, 16, sum(lengths), 64, device=device)
    given = exact.to(getattr(torch, kind)).requires_grad_()
    run = _way(way, lengths, device)
    expected, of_loop = _with_gradient(_way("lengths", lengths, device), exact.requires_grad_())
    found, gradient = _with_gradient(run, given)
    seconds, gigabytes = timed(lambda step: _with_gradient(run, given))
    apart = {"output apart": found - expected, "gradient apart": gradient - of_loop}
    name = f"attention, {way}, {kind}, {sum(lengths):,} tokens"
    return {
        **{"case": name, "median s": seconds, "peak GB": gigabytes},
        **{what: float(difference.abs().max()) for what, difference in apart.items()},
    }


def _way(way: str, lengths: list[int], device: torch.device) -> Callable[[Tensor], Tensor]:
    pattern, documents = varlen.Pattern(causal=True), flex.Documents(lengths, device)
    borders = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    if way == "flex":
        return lambda given: flex.attend(*given.unbind(), documents, pattern)
    if way == "varlen" and on_gpu():  # On a CPU, the loop stands for the kernel.
        return lambda given: varlen.attend(*given.unbind(), borders, max(lengths), pattern)
    return lambda given: attend_by_length(*given.unbind(), lengths, pattern)


def _with_gradient(run: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of the queries for the sum of its squares, both in float32."""
    output = run(given).float()
    (gradient,) = torch.autograd.grad(output.square().sum(), given)
    return output.detach(), gradient[0].float()
