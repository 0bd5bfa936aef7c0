"""Sides of the DPO benchmark: our trainer, the formulas on whole logits, and TRL's DPOTrainer."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.ours import build_trainer
from benchmarks.sides import Outcome, Update
from benchmarks.workloads import MINILM, Row

if TYPE_CHECKING:
    from torch import Tensor, nn

LEARNING_RATE = 1e-4  # large enough for losses of later updates to tell gradients apart
BETA, LEVEL = 0.1, 0.95


def write_chat(path: Path, rows: Sequence[Row], prompt_words: int, completion_words: int) -> Path:
    """Plain prompts and two completions, so many words each, from rows of a query and two texts."""
    lines = []
    for row in rows:
        chosen, rejected = (_words(text, completion_words) for text in row.candidates)
        prompt = _words(f"{row.query} {row.candidates[0]}", prompt_words)
        # the blank stands before the completion, where TRL, which tokenises both together, expects it
        lines.append(json.dumps({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}) + "\n")
    path.write_text("".join(lines))
    return path


def _words(text: str, count: int) -> str:
    words = text.split()
    return " ".join((words * (-(-count // len(words))))[:count])


def write_model(folder: Path, *, vocabulary: int | None, layers: int, hidden: int, heads: int) -> str:
    """A folder with a random Llama and MiniLM's word pieces. vocabulary: rows of its embeddings; None: the tokens'."""
    import torch
    from tokenizers import processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from rankpo.models.loading import load_tokenizer, resolve

    backend: Any = load_tokenizer(resolve(MINILM)).backend_tokenizer
    # a causal model's tokenizer puts nothing around a text
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    backend.no_truncation()
    backend.no_padding()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[SEP]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def ours(*, overrides: Sequence[str], data: str) -> Update:
    """Updates of the trainer that these overrides give, over the records in their order."""
    common = (f"optimizer.lr={LEARNING_RATE}", f"loss.beta={BETA}", "datasets=[chat]", f"datasets.chat.path={data}")
    trainer, folder = build_trainer([*overrides, *common])

    def update(step: int) -> Outcome:

        prepared = trainer.prepare(step)
        trainer.train_step(prepared)
        loss = trainer.running.result(lambda tensor: tensor)["loss"]
        trainer.running.clear()
        batches = [item.batch for item in prepared.micro_batches if item.counts]
        return Outcome(loss, tokens=sum(batch.sequences.num_tokens for batch in batches))

    update.keep = folder  # type: ignore[attr-defined]  # the token file is mapped from it
    return update


def full_vocabulary(
    *, folder: str, data: str, batch_size: int, max_prompt_length: int, max_length: int, risk: bool
) -> Update:
    """DPO (https://arxiv.org/abs/2305.18290 eq. 7), or with `risk` Ra-DPO (https://arxiv.org/abs/2505.20359) as its
    formula reads: logits of all positions of both models, log-softmax, and what is asked of them.
    """
    import torch
    from torch.nn.functional import logsigmoid
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rankpo.models.causal_lm.inputs import CompletionInputs
    from rankpo.models.causal_lm.settings import CausalSettings

    settings = CausalSettings(max_length=max_length, max_prompt_length=max_prompt_length)
    inputs = CompletionInputs(AutoTokenizer.from_pretrained(folder), settings)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference = copy.deepcopy(model).requires_grad_(False).eval()
    records = [json.loads(line) for line in Path(data).read_text().splitlines()]

    def loss_of(chunk: Sequence[dict[str, str]]) -> Tensor:
        texts = [record[key] for key in ("chosen", "rejected") for record in chunk]
        batch = inputs.sequences_of([record["prompt"] for record in chunk] * 2, texts)
        assert batch.labels is not None
        lengths = batch.lengths.tolist()
        ids = torch.nn.utils.rnn.pad_sequence(list(batch.input_ids.split(lengths)), batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(
            list(batch.labels.split(lengths)), batch_first=True, padding_value=-100
        )[:, 1:]
        mask = (torch.arange(ids.shape[1]) < batch.lengths[:, None]).long()
        with torch.no_grad():
            fixed = reference(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)  # [2B, T - 1, V]
        policy = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        gap = _halves(_of_labels(policy, labels) - _of_labels(fixed, labels))
        if risk:
            gap = gap + _halves((_cvar(fixed, policy) * (labels != -100)).sum(1))
        return -logsigmoid(BETA * gap).mean()

    return training(model, batches(records, batch_size), lambda chunk: [(loss_of(chunk), 1.0)])


def _halves(values: Tensor) -> Tensor:
    """The chosen completions' values less the rejected ones'."""
    chosen, rejected = values.chunk(2)
    return chosen - rejected


def _of_labels(logps: Tensor, labels: Tensor) -> Tensor:
    """[2B] summed log-probabilities of the labels that are not -100."""
    return (logps.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1) * (labels != -100)).sum(1)


def _cvar(fixed: Tensor, policy: Tensor) -> Tensor:
    """[2B, T - 1]: the mean of log(reference/policy) over its upper tail of mass LEVEL under the reference."""
    import torch

    gains = fixed - policy
    weights = torch.empty_like(fixed)
    with torch.no_grad():
        for row in range(len(fixed)):  # sorted a sequence at a time: the indices of all would need the most memory
            order = gains[row].argsort(-1, descending=True)
            p = fixed[row].exp().gather(-1, order)
            kept = torch.minimum((LEVEL - (p.cumsum(-1) - p)).clamp(min=0), p)
            weights[row] = torch.zeros_like(p).scatter(-1, order, kept)
    return (weights * gains).sum(-1) / LEVEL


def trl(
    *,
    folder: str,
    data: str,
    batch_size: int,
    at_once: int,
    precomputed: bool,
    more: Mapping[str, object] | None = None,
) -> Update:
    """Updates of TRL's DPOTrainer: its tokenisation, collator and loss, `at_once` pairs in a batch, then clipping, AdamW.

    Called directly, which leaves its loop's own work out. precomputed: its reference log-probabilities come from before.
    more: fields of DPOConfig in place of those below.
    """
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"

    class InOrder(DPOTrainer):
        """DPOTrainer that reads its rows in their order."""

        def _get_train_sampler(self, *arguments: Any) -> Any:
            return torch.utils.data.SequentialSampler(arguments[0] if arguments else self.train_dataset)

    model, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    output = TemporaryDirectory(prefix="rankpo-benchmark-")
    unlimited = {"max_prompt_length": None} if "max_prompt_length" in {f.name for f in fields(DPOConfig)} else {}
    plain = {"max_length": 4096, "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": []}
    arguments = DPOConfig(
        output_dir=output.name,
        per_device_train_batch_size=at_once,
        beta=BETA,
        precompute_ref_log_probs=precomputed,
        **{**plain, **unlimited, **(more or {})},
    )
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    trainer = InOrder(
        model=model,
        ref_model=None if precomputed else reference,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([json.loads(line) for line in Path(data).read_text().splitlines()]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    del reference
    loader = trainer.get_train_dataloader()
    parts = batch_size // at_once

    def endless() -> Iterator[list[Any]]:
        while True:
            several = list(loader)
            yield from (several[start : start + parts] for start in range(0, len(several), parts))

    def losses(chunk: list[Any]) -> Iterator[tuple[Tensor, float]]:
        for batch in chunk:
            yield trainer.compute_loss(model, batch), 1 / parts

    update = training(model, endless(), losses)
    update.keep = output  # type: ignore[attr-defined]  # the trainer writes there
    return update


def batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The rows in their order, `size` at a time, again from the first after the last."""
    while True:
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def training(
    model: nn.Module,
    chunks: Iterator[Any],
    losses: Callable[[Any], Iterator[tuple[Tensor, float]] | list[tuple[Tensor, float]]],
) -> Update:
    """Updates on one chunk each. losses: its parts with their weights, each of which gets a backward of its own."""
    import torch

    parameters: list[Any] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    model.train()

    def update(step: int) -> Outcome:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for loss, weight in losses(next(chunks)):
            (loss * weight).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) * weight
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return Outcome(total)

    return update
