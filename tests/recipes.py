"""One small run for every loss of config/loss: what the promise of the loop is tested on."""

from __future__ import annotations

from tests.runs import CONTRASTIVE, RANKPO, TINY

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
    "model=tiny_llama",
    "kind=causal_lm",
    "model.random.num_hidden_layers=1",
    "model.max_length=192",
    "model.max_prompt_length=160",
    "datasets=[toy_chat]",
    "datasets.toy_chat.num_examples=10",
)
LATE = (
    *(key for key in TINY if key != "kind=embedding"),
    "kind=late_interaction",
    "model.dim=16",
    "model.query_expansion=fixed",
    "model.skip=punctuation",
)
PAIRS = (*RANKPO, "loss.temperature=0.1")
GRADED = (*TINY, "datasets=[toy_graded]", "optimizer.lr=0.05")
RERANKER = (
    *SGD,
    "model=tiny_llama",
    "kind=reranker",
    "model.random.num_hidden_layers=1",
    "model.max_length=128",
    "optimizer.lr=1",
)
LISTS = (*SGD, "model=tiny_llama_wide", "kind=listwise", "datasets=[toy_lists]", "datasets.toy_lists.num_examples=11")
PLAIN = ("loss.temperature=1",)  # smaller ones need a smaller learning rate
PLAIN_MIXTURE = tuple(f"loss.losses.{name}.temperature=1" for name in ("labels", "teacher"))
GRADED_MARGIN = (*GRADED, "loss=graded_margin", "loss.temperature=0.5", "dataloader.group_size=7")
# a model that is its own teacher has nothing to learn from its vectors, but from shorter ones
AWAY = ("loss.triplet_weight=20", "loss.dims=[8]", "dataloader.group_size=3")
REGULARISED = ("model.regularizer.query_weight=0.02", "model.regularizer.document_weight=0.03")
SPARSE = (*(key for key in TINY if key != "kind=embedding"), "kind=sparse", *REGULARISED)
HYBRID = (*(key for key in TINY if key != "kind=embedding"), "kind=hybrid", "model.colbert_dim=16")
SPARSE_CONTRASTIVE = (*SPARSE, "loss=contrastive", "loss.temperature=1", "optimizer.lr=0.01", *CONTRASTIVE[-1:])
OF_SCORED_PAIRS = ("cosent", "angle", "cosine_mse")
OF_LABELLED_PAIRS = ("contrastive_pairs", "online_contrastive")
BINARY = ("datasets=[toy_pairs]",)  # two candidates of grades 1 and 0
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
# at their default, meant for sums over tokens, a few updates on embeddings would move nothing
STRONG = {name: ("loss.beta=1",) for name in ("apo-down", "bco", "nca")} | {"sppo": ("loss.beta=0.1",)}
LOSSES: dict[str, tuple[str, ...]] = {
    "contrastive": CONTRASTIVE,
    "graded_margin": GRADED_MARGIN,
    "triplet": (*TINY, "loss=triplet", "datasets=[toy_contrastive]"),
    "gist": (*TINY, "loss=gist", "loss.temperature=0.1", "datasets=[toy_contrastive]"),
    **{name: (*GRADED, f"loss={name}", *AWAY) for name in ("embed_distill", "jasper")},
    **{name: (*GRADED, f"loss={name}") for name in OF_SCORED_PAIRS},
    **{name: (*GRADED, f"loss={name}", "loss.margin=0.9", *BINARY) for name in OF_LABELLED_PAIRS},
    "m3": (*HYBRID, "loss=m3", "loss.temperature=0.1", CONTRASTIVE[-1]),
    "rankpo": RANKPO,
    **{name: (*PAIRS, f"loss={name}", *STRONG.get(name, ())) for name in OF_PAIRS},
    **{name: (*GRADED, f"loss={name}", *(PLAIN_MIXTURE if name == "mixture" else PLAIN)) for name in OF_LISTS},
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
GRADED_REPLAY = (
    *(key for key in REPLAY if key != "replay_datasets=[toy_contrastive]"),
    "loss.replay_kind=graded_margin",
    "replay_datasets=[toy_graded]",
    "replay_dataloader=listwise",
    "replay_dataloader.group_size=5",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "triplet, in batch": (*TINY, "loss=triplet", "loss.negatives=in_batch", "datasets=[toy_contrastive]"),
    "online contrastive, mean": (
        *(*GRADED, "loss=online_contrastive", *BINARY),
        *("loss.reduction=mean", "loss.distance=euclidean", "loss.margin=0.9"),
    ),
    "graded margin, own": (*GRADED_MARGIN, "loss.negatives=own"),
    "graded margin, unknown irrelevant": (*GRADED_MARGIN, "loss.unknown=irrelevant"),
    "graded replay": GRADED_REPLAY,
    "own negatives": (*CONTRASTIVE, "loss.negatives=own"),
    "symmetric": (*CONTRASTIVE, "loss.symmetric=true", "loss.query_query=true"),
    "matryoshka": (*CONTRASTIVE, "loss.matryoshka_dims=[16,8]"),
    "hinge": (*RANKPO, "loss.kind=hinge", "loss.reference_free=false"),
    "confidence": (*RANKPO, "loss.confidence=weight", "loss.sft_weight=0.5"),
    "replay": REPLAY,
    "unequal lists": (*GRADED, "loss=pointwise", *PLAIN, "dataloader.group_size=5"),
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
    "hybrid, pairs": (*HYBRID, "loss=rankpo", "datasets=[toy_pairs]"),
    "sparse": SPARSE_CONTRASTIVE,
    "sparse, static queries": (*SPARSE_CONTRASTIVE, "model.query_encoder=static", "model.activation=log1p_relu"),
    "sparse, l1, own": (*SPARSE_CONTRASTIVE, "loss.negatives=own", "model.regularizer.kind=l1"),
    "sparse, each rank alone": (*SPARSE_CONTRASTIVE, "loss.cross_device=false"),
    "sparse, lists": (*SPARSE, "loss=margin_mse", "datasets=[toy_graded]", "optimizer.lr=0.0003"),
    "sparse, pairs": (
        *SPARSE,
        "loss=rankpo",
        "loss.temperature=3000",
        "model.pooling=sum",
        "datasets=[toy_pairs]",
        "optimizer.lr=0.01",
        "model.regularizer.document_threshold=60",
    ),
    "late interaction": (*LATE, "loss=contrastive", "loss.temperature=0.1", "datasets=[toy_contrastive]"),
    "late interaction, pairs": (*LATE, "loss=rankpo", "datasets=[toy_pairs]"),
    "reranker": (*RERANKER, "datasets=[toy_pairs]", "loss=dpo"),
    "reranker of lists": (*RERANKER, "datasets=[toy_graded]", "loss=ranknet"),
}
EVERY = {**LOSSES, **VARIANTS}
# trainer.max_tokens that holds every update whole, and those under which each is cut into several micro-batches
WHOLE = 100000
PARTS = {name: 60 if "kind=listwise" in recipe else 150 for name, recipe in EVERY.items()}
# for many updates: at the rates of a few, some go so far that rounding, amplified, shows in the curve
GENTLE = dict.fromkeys(
    (
        "bradley-terry",
        "contrastive",
        "jasper",
        "orpo",
        "rankpo",
        "simpo",
        "slic",
        "own negatives",
        "symmetric",
        "matryoshka",
    ),
    0.0003,
)
GENTLE |= dict.fromkeys(("hinge", "confidence", "replay", "sppo", "grpo, embeddings", "cpo", "ipo"), 0.0003)
GENTLE |= {"reranker": 0.05, "reranker of lists": 0.02, "bradley-terry, tokens": 0.005, "bco, tokens": 0.02}


def gentle(name: str) -> str:
    """A learning rate at which fifty updates move the loss, and no further than floats of 32 bits can follow."""
    return f"optimizer.lr={GENTLE.get(name, 0.002)}"
