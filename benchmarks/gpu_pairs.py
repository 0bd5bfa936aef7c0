"""Parts of `benchmarks.gpu` that score pairs and lists: cross-encoders, listwise rerankers, and TRL's side of dpo."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks import dpo_sides, ours, peers
from benchmarks.gpu_cases import Measured, Work, draw_text, has, on_gpu, timed, under_autocast
from benchmarks.workloads import Row


def cross_encoder_of_peer(weights: str, work: Work) -> Measured:
    """sentence-transformers' CrossEncoder with binary cross-entropy under bf16 autocast, as `loss=pointwise_bce`."""
    update = peers.cross_encoder_update(
        folder=weights, rows=work.rows, batch_size=work.batch_size, max_length=2 * work.length
    )
    seconds, gigabytes = timed(under_autocast(update))
    return Measured("cross-encoder, sentence-transformers", seconds, 0, 0, gigabytes)


def listwise(decode: str, weights: str, quick: bool) -> dict[str, Any]:
    """Windows of 20 among 100 passages of 64 tokens under bf16 autocast. decode: `first_token`, or `generate`."""
    passages, window, stride = (8, 4, 2) if quick else (100, 20, 10)
    draw = random.Random("lists")
    rows = [Row(draw_text(draw, 12), tuple(draw_text(draw, 200) for _ in range(passages))) for _ in range(2)]
    sizes = [f"model.window={window}", f"model.stride={stride}", "model.max_passage_tokens=64"]
    sizes += ["model.max_length=2048"] if quick else []
    update = ours.listwise_update(overrides=[f"model.name_or_path={weights}", *sizes], rows=rows, decode=decode)
    seconds, gigabytes = timed(under_autocast(update))
    return {"case": f"listwise, {passages} passages, {decode}", "median s": seconds, "peak GB": gigabytes}


def trl_dpo(folder: Path, weights: str, work: Work) -> Measured:
    """An update of TRL's DPOTrainer with bf16 autocast and gradient checkpointing, in its leanest form that is installed.

    That is a pair at a time, with the Liger kernel if liger_kernel is there, and without padding if flash_attn is there.
    """
    data = folder / "trl.jsonl"
    records = [
        dict(zip(("prompt", "chosen", "rejected"), (row.query, *row.candidates), strict=True)) for row in work.rows
    ]
    data.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    more = {
        "bf16": True,
        "gradient_checkpointing": True,
        "use_cpu": not on_gpu(),
        "max_length": 2 * work.length,
        "use_liger_kernel": on_gpu() and has("liger_kernel"),
        "padding_free": on_gpu() and has("flash_attn"),
    }
    update = dpo_sides.trl(
        folder=weights, data=str(data), batch_size=work.batch_size, at_once=1, precomputed=False, more=more
    )
    seconds, gigabytes = timed(under_autocast(update))
    forms = [name for name in ("use_liger_kernel", "padding_free") if more[name]]
    return Measured(" · ".join(["dpo, TRL", *forms]), seconds, 0, 0, gigabytes)
