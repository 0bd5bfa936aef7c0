"""One small run for every loss of config/loss: what the promise of the loop is tested on."""

from __future__ import annotations

from tests.runs import CONTRASTIVE, RANKPO, TINY

WHOLE = "trainer.max_tokens=100000"
SGD = (
    "trainer.log_every=1",
    "trainer.batch_size=4",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=constant",
    "scheduler.warmup=0",
)
CHAT = (
    *SGD,
    "model=tiny_llama_lm",
    "model.random.num_hidden_layers=1",
    "model.max_length=192",
    "model.max_prompt_length=160",
    "datasets=[toy_chat]",
    "datasets.toy_chat.num_examples=10",
)
PAIRS = (*RANKPO, "loss.temperature=0.1")
GRADED = (*TINY, "datasets=[toy_graded]", "optimizer.lr=0.05")
LISTS = (*SGD, "model=tiny_listwise", "datasets=[toy_lists]", "datasets.toy_lists.num_examples=11")
OF_PAIRS = (
    *("apo-down", "apo-zero", "bco", "bradley-terry", "cdpo", "cpo", "dpo", "exo", "ipo", "nca", "orpo", "robust_dpo"),
    *("simpo", "slic", "sppo"),
)
OF_LISTS = (
    *(
        "adr_mse",
        "kl_distill",
        "lambdaloss",
        "lambdarank",
        "listmle",
        "listnet",
        "listwise_ce",
        "margin_mse",
        "mixture",
    ),
    *("pairwise_ranknet", "plackett_luce", "plistmle", "point_ce", "point_mse", "pointwise", "pointwise_bce"),
    *("pointwise_mse", "ranknet", "softmax"),
)
OF_TOKENS = ("csft", "grpo", "kto", "kto-zero", "ppo", "ra-dpo", "sft", "tdpo")
OF_WINDOWS = ("listwise_combined", "listwise_generation", "listwise_ranking")
LOSSES: dict[str, tuple[str, ...]] = {
    "contrastive": CONTRASTIVE,
    "rankpo": RANKPO,
    **{name: (*PAIRS, f"loss={name}") for name in OF_PAIRS},
    **{name: (*GRADED, f"loss={name}") for name in OF_LISTS},
    **{name: (*CHAT, f"loss={name}") for name in OF_TOKENS},
    **{name: (*LISTS, f"loss={name}", "optimizer.lr=0.05") for name in OF_WINDOWS},
}
# ways through the loop that no loss takes by default
REPLAY = (
    *RANKPO,
    "loss.reference_free=false",
    "loss.replay_weight=0.5",
    "loss.replay_temperature=0.1",
    "replay_datasets=[toy_contrastive]",
    "trainer.replay_batch_size=3",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "own negatives": (*CONTRASTIVE, "loss.negatives=own"),
    "symmetric": (*CONTRASTIVE, "loss.symmetric=true", "loss.query_query=true"),
    "matryoshka": (*CONTRASTIVE, "loss.matryoshka_dims=[16,8]"),
    "hinge": (*RANKPO, "loss.kind=hinge", "loss.reference_free=false"),
    "confidence": (*RANKPO, "loss.confidence=weight", "loss.sft_weight=0.5"),
    "replay": REPLAY,
    "dpo, tokens": (*CHAT, "loss=dpo"),
    "simpo, tokens": (*CHAT, "loss=simpo"),
    "orpo, tokens": (*CHAT, "loss=orpo"),
    "ipo, tokens": (*CHAT, "loss=ipo"),
    "bco, tokens": (*CHAT, "loss=bco"),
    "bradley-terry, tokens": (*CHAT, "loss=bradley-terry"),
    # completions become likelier, matched or not: a reference point above 0
    "kto, rising": (*CHAT, "loss=kto", "loss.desirable_weight=4"),
    "kto, embeddings": (*PAIRS, "loss=kto", "loss.desirable_weight=4"),
    "ppo, two passes": (*CHAT, "loss=ppo", "loss.epochs=2"),
    "ppo, full kl": (*CHAT, "loss=ppo", "loss.kl=full", "loss.kl_coef=0.5", "loss.clip=reciprocal"),
    "grpo, two passes": (*CHAT, "loss=grpo", "loss.beta=0.1", "loss.epochs=2"),
    "grpo, by sequence": (*CHAT, "loss=grpo", "loss.normalise=sequence", "loss.old_policy=batch", "loss.epochs=2"),
    "grpo, embeddings": (*PAIRS, "loss=grpo", "loss.beta=0.1", "loss.epochs=2"),
    "reranker": (*SGD, "model=tiny_reranker", "model.max_length=256", "datasets=[toy_pairs]", "loss=dpo"),
    "reranker of lists": (*SGD, "model=tiny_reranker", "model.max_length=96", "datasets=[toy_graded]", "loss=ranknet"),
}
EVERY = {**LOSSES, **VARIANTS}
# a budget under which every update is cut into several micro-batches
PARTS = {name: f"trainer.max_tokens={60 if 'tiny_listwise' in str(recipe) else 150}" for name, recipe in EVERY.items()}
