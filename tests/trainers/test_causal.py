"""SFT and the DPO family on causal language models: known first values, the promise of the loop, FINAL."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

import rankpo
from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from tests.runs import curve, final_weights, train, trainer_of

TINY = (
    "model=tiny_llama",
    "kind=causal_lm",
    "model.random.num_hidden_layers=1",
    "model.max_length=192",
    "model.max_prompt_length=160",
    "datasets=[toy_chat]",
    "datasets.toy_chat.num_examples=10",
    "trainer.log_every=1",
    "trainer.batch_size=4",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=constant",
    "scheduler.warmup=0",
)


def run(tmp_path, name, *overrides):
    train(*TINY, *overrides, f"exp_name={name}", f"cache_dir={tmp_path}")
    return tmp_path / name


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_first_value_where_policy_is_reference(tmp_path, layout):
    """Of the other losses: test_objectives.py."""
    done = run(tmp_path, "run", "loss=dpo", f"model.layout={layout}", "trainer.max_steps=1")
    assert_close(curve(done), [math.log(2)], atol=1e-6, rtol=0)
    assert "train/logps/chosen" in (done / "metrics.jsonl").read_text()


@pytest.mark.parametrize("recipe", ["csft", "dpo"])
def test_max_tokens_and_layout_change_nothing(tmp_path, recipe):
    """One micro-batch against one for every sequence, packed against padded. All losses: test_invariance.py."""
    whole = run(tmp_path, "whole", f"loss={recipe}", "trainer.max_tokens=100000")
    parts = run(tmp_path, "parts", f"loss={recipe}", "trainer.max_tokens=150", "model.layout=padded")
    assert len(curve(whole)) >= 3
    assert_close(curve(parts), curve(whole), rtol=1e-5, atol=1e-6)
    assert_close(final_weights(parts), final_weights(whole), rtol=1e-4, atol=1e-5)


def test_sft_is_the_mean_over_the_tokens_of_the_update(tmp_path):
    """The other side: each completion alone, plain transformers logits in float64, one mean over all its tokens."""
    trainer = trainer_of(*TINY, "loss=sft", f"cache_dir={tmp_path}")
    update = trainer.prepare(0)
    trainer.backward(update)
    table, inputs = trainer.loader.table, trainer.policy.inputs
    model = trainer.policy.base
    model.config._attn_implementation = "sdpa"
    total, count = 0.0, 0
    for group in trainer.loader.groups(0):
        prompt, completion = table.tokens(group.query), table.tokens(group.candidates[0])
        ids = torch.tensor([*prompt, *completion])
        logps = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1).gather(-1, ids[1:, None]).detach()
        total, count = total + float(logps[len(prompt) - 1 :].sum()), count + len(completion)
        assert int(completion[-1]) == inputs.tokenizer.eos_token_id
    trainer.running.end_update()
    assert_close(trainer.running.result(lambda sums: sums)["loss"], -total / count, rtol=1e-6, atol=0)
    assert update.denominators == {"loss": count}


def test_chain_from_sft_to_dpo_and_what_final_holds(tmp_path):
    """The second stage starts from the first one's FINAL, with log 2, and both load in plain transformers."""
    learning = ("optimizer=adamw", "optimizer.lr=0.003", "trainer.epochs=4")
    first = run(tmp_path, "first", "loss=sft", "model=tiny_pythia", *learning)
    assert curve(first)[-1] < curve(first)[0] - 0.3
    chain = ("loss=dpo", "model=tiny_pythia", f"model.load_from={first}/FINAL", *learning)
    second = run(tmp_path, "second", *chain)
    assert_close(curve(second)[0], math.log(2), atol=1e-6, rtol=0)
    assert sum(curve(second)[-3:]) / 3 < 0.6  # the last epoch
    loaded = AutoModelForCausalLM.from_pretrained(second / "FINAL")
    tokenizer = AutoTokenizer.from_pretrained(second / "FINAL")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What colour is snow?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert tokenizer.decode(ids["input_ids"][0]) == "[CLS]<|user|>\nWhat colour is snow?\n<|assistant|>\n"
    assert loaded.generate(**ids, max_new_tokens=3).shape[1] == ids["input_ids"].shape[1] + 3


@pytest.mark.parametrize("source", ["live", "adapters"])
def test_references_agree_with_the_stored_one(tmp_path, source):
    lora = ("model.use_peft=true",) if source == "adapters" else ()
    options = (*TINY, "loss=dpo", *lora, f"cache_dir={tmp_path}")
    stored, other = (
        trainer_of(*options, "trainer.reference=stored"),
        trainer_of(*options, f"trainer.reference={source}"),
    )
    for parameter in other.policy.parameters():
        if parameter.requires_grad:  # the policy moves on; the reference must not
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    (batch,) = (item.batch for item in stored.prepare(0).micro_batches)
    (same,) = (item.batch for item in other.prepare(0).micro_batches)
    assert_close(other.reference.scores(same), batch.reference, atol=1e-4, rtol=0)
    assert (other.policy.score(other.policy(same.sequences), same) - batch.reference).abs().max() > 1e-2


def test_adapters_are_merged_into_final_and_kept_beside_it(tmp_path):
    done = run(tmp_path, "lora", "loss=dpo", "model.use_peft=true", "trainer.max_steps=2", "optimizer.lr=2")
    assert_close(curve(done)[0], math.log(2), atol=1e-6, rtol=0)
    assert curve(done)[1] < curve(done)[0]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        f.name for f in (done / "FINAL" / "adapter").iterdir()
    }
    assert not [name for name in final_weights(done) if "lora" in name]
    from peft import PeftModel

    start = trainer_of(*TINY, "loss=dpo", f"cache_dir={tmp_path}").policy.base
    start.config._attn_implementation = "sdpa"
    together = PeftModel.from_pretrained(start, done / "FINAL" / "adapter")
    ids = torch.arange(5, 25)[None]
    merged = AutoModelForCausalLM.from_pretrained(done / "FINAL")
    assert_close(together(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-5, rtol=0)


def test_adapters_of_an_earlier_run_go_on(tmp_path):
    first = run(tmp_path, "first", "loss=sft", "model.use_peft=true", "trainer.max_steps=2")
    again = trainer_of(
        *TINY, "loss=sft", "model.use_peft=true", f"model.load_lora_from={first}/FINAL/adapter", f"cache_dir={tmp_path}"
    )
    trained = [parameter for parameter in again.policy.parameters() if parameter.requires_grad]
    assert trained and any(
        bool(parameter.detach().abs().sum() > 0) for n, parameter in again.policy.named_parameters() if "lora_B" in n
    )


def test_control_tokens_are_new_rows_of_the_vocabulary(tmp_path):
    trainer = trainer_of(*TINY, "loss=csft", f"cache_dir={tmp_path}")
    good, bad = trainer.policy.inputs.control
    assert (good, bad) == (260, 261) and trainer.policy.head.weight.shape[0] == 262
    (item,) = trainer.prepare(0).micro_batches
    sequences = item.batch.sequences
    labels, ids = sequences.labels, sequences.input_ids
    places = ((ids == good) | (ids == bad)).nonzero().squeeze(-1)
    assert (
        len(places) == len(sequences)
        and bool((labels[places] == -100).all())
        and bool((labels[places + 1] != -100).all())
    )
    assert [260 if float(r) > 0 else 261 for r in item.batch.labels.relevance[:, 0]] == ids[places][
        item.batch.candidates[:, 0]
    ].tolist()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("loss=sft", "model=tiny_bert", "kind=embedding"),
            "SFTLoss needs token log-probabilities; .* of kind embedding",
        ),
        (("loss=contrastive", "model=tiny_pythia", "kind=causal_lm"), "ContrastiveLoss needs embeddings"),
        (("loss=sft", "model=tiny_pythia", "model.max_prompt_length=2000"), "model.max_prompt_length must be in 2 to"),
        (("loss=sft", "model=tiny_pythia", "model.load_lora_from=x"), "model.load_lora_from needs use_peft=true"),
    ],
)
def test_errors_before_any_weight_is_loaded(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose([*overrides, "datasets=[toy_chat]"])


def test_reference_scores_are_kept_and_used_again(tmp_path):
    """The second run starts from other weights, with the first one's reference: its first loss is not log 2."""
    run(tmp_path, "first", "loss=dpo", "cache_reference_logprobs=true", "model.use_peft=true", "trainer.max_steps=1")
    assert_close(curve(tmp_path / "first"), [math.log(2)], atol=1e-6, rtol=0)
    load = f"load_reference_logprobs={tmp_path}/first"
    same = trainer_of(*TINY, "loss=dpo", load, f"cache_dir={tmp_path}")
    computed = trainer_of(*TINY, "loss=dpo", f"cache_dir={tmp_path}")
    assert_close(same.stored, computed.stored, atol=1e-5, rtol=0)
    run(tmp_path, "second", "loss=dpo", "seed=7", load, "trainer.max_steps=1")
    assert abs(curve(tmp_path / "second")[0] - math.log(2)) > 1e-4
    for change, what in (
        ("model.max_length=190", "model settings"),
        ("datasets.toy_chat.num_examples=9", "datasets or tokenizer"),
    ):
        with pytest.raises(ConfigError, match=f"was computed with other {what}"):
            trainer_of(*TINY, "loss=dpo", load, change, f"cache_dir={tmp_path}")
    with pytest.raises(ConfigError, match="no such file; a run with cache_reference_logprobs=true writes one"):
        trainer_of(*TINY, "loss=dpo", f"load_reference_logprobs={tmp_path}/nowhere", f"cache_dir={tmp_path}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss=simpo", "cache_reference_logprobs=true"), "cache_reference_logprobs: SimPOLoss has no reference"),
        (("loss=tdpo", "load_reference_logprobs=x"), "needs the reference model itself, not stored scores"),
        (
            ("loss=dpo", "load_reference_logprobs=x", "trainer.reference=live"),
            "needs stored reference scores, and trainer.reference=live; set trainer.reference=auto",
        ),
        (("loss=dpo", "load_reference_logprobs=x", "cache_reference_logprobs=true"), "set only one of them"),
    ],
)
def test_reference_keys_that_contradict(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose([*overrides, "model=tiny_pythia", "datasets=[toy_chat]"])


def test_reference_of_adapters_that_go_on_is_the_start_model(tmp_path):
    """Switched off, the base model would be the reference, and the first loss not log 2."""
    first = run(tmp_path, "first", "loss=sft", "model.use_peft=true", "optimizer.lr=2")
    go_on = ("model.use_peft=true", f"model.load_lora_from={first}/FINAL/adapter", "trainer.max_steps=1")
    assert_close(curve(run(tmp_path, "second", "loss=dpo", *go_on)), [math.log(2)], atol=1e-6, rtol=0)


def test_evaluation_of_pairs_and_of_completions(tmp_path):
    """Rewards against the start model: nothing gained at step 0; then as recomputed from both models' scores."""
    options = ("eval_datasets=[toy_chat]", "eval_datasets.toy_chat.num_examples=10", "optimizer.lr=0.5")
    done = run(tmp_path, "dpo", "loss=dpo", "loss.beta=0.5", *options)
    rows = {
        name: curve(done, f"eval/toy_chat/{name}")
        for name in ("accuracy", "margin", "rewards/accuracies", "rewards/margins")
    }
    assert rows["rewards/accuracies"][0] == rows["rewards/margins"][0] == 0.0
    assert_close(rows["rewards/margins"][-1], 0.5 * (rows["margin"][-1] - rows["margin"][0]), rtol=1e-4, atol=1e-5)
    assert rows["rewards/accuracies"][-1] > 0.5
    trainer = trainer_of(*TINY, "loss=sft", *options, f"cache_dir={tmp_path}")
    metrics = trainer.watch.evaluate()
    policy, table = trainer.policy, trainer.loader.table
    chosen = policy.inputs.slot_pieces(table)[::2]
    scores = policy(policy.inputs.sequences(table, chosen)).detach().double()
    expected = float(scores.sum() / policy.inputs.completion_lengths(table, chosen).sum())
    assert_close(metrics["toy_chat/logps"], expected, rtol=1e-6, atol=0)
    assert_close(metrics["toy_chat/perplexity"], math.exp(-expected), rtol=1e-6, atol=0)
    simpo = trainer_of(*TINY, "loss=simpo", *options, f"cache_dir={tmp_path}").watch.evaluate()
    assert {"toy_chat/accuracy", "toy_chat/margin", "toy_chat/loss"} < set(simpo)


def test_a_saved_model_scores_texts(tmp_path):
    """rankpo.load on FINAL: as the run itself scored the same pairs, in one call."""
    done = run(tmp_path, "sft", "loss=sft", "optimizer.lr=0.5")
    loaded = rankpo.load(done / "FINAL", device="cpu")
    trainer = trainer_of(*TINY, "loss=sft", f"model.load_from={done}/FINAL", f"cache_dir={tmp_path}")
    (dataset,) = compose([*TINY, "loss=sft"]).datasets
    pairs = [(example.query, text) for example in dataset.examples() for text in example.candidates]
    scores = loaded.logps([prompt for prompt, _ in pairs], [text for _, text in pairs])
    assert_close(scores, trainer.policy.slot_scores(trainer.loader.table), atol=1e-4, rtol=0)
    plain = loaded.logps(["The sky is"], [" blue."])
    ids = torch.tensor(loaded.tokenizer("[CLS]The sky is blue.[SEP]", add_special_tokens=False)["input_ids"])
    logits = AutoModelForCausalLM.from_pretrained(done / "FINAL")(input_ids=ids[None]).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(-1, ids[1:, None])[10:].sum().detach()  # [CLS] and ten letters are given
    assert_close(float(plain[0]), float(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("loss", ["dpo", "ra-dpo", "kto", "ppo"])
def test_adapters_need_no_second_copy_of_the_weights(tmp_path, loss):
    """The reference is the policy itself, adapters off."""
    trainer = trainer_of(*TINY, f"loss={loss}", "model.use_peft=true", f"cache_dir={tmp_path}")
    assert trainer.reference.model is trainer.policy
    frozen = sum(parameter.numel() for parameter in trainer.policy.parameters() if not parameter.requires_grad)
    whole = sum(p.numel() for p in trainer_of(*TINY, "loss=sft", f"cache_dir={tmp_path}").policy.parameters())
    assert frozen == whole


@pytest.mark.parametrize("loss", ["tdpo", "kto"])
def test_new_tokens_are_those_of_policy_and_reference(tmp_path, loss):
    """Equal rows in both, new ones too: nothing is gained before the first update."""
    first = "model.control_tokens=['<|good|>','<|bad|>']"
    trainer = trainer_of(*TINY, f"loss={loss}", first, f"cache_dir={tmp_path}")
    rows = [model.base.get_input_embeddings().weight for model in (trainer.policy, trainer.reference.model)]
    assert rows[0].shape[0] == rows[1].shape[0] == max(trainer.policy.inputs.control) + 1
    assert rows[0] is not rows[1]
    assert_close(rows[0], rows[1], rtol=0, atol=0)
    trainer.train_step(trainer.prepare(0))
    value = trainer.running.result(lambda sums: sums)["loss"]
    assert_close(value, math.log(2) if loss == "tdpo" else 0.5, atol=1e-6, rtol=0)
