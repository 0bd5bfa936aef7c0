"""FINAL of language models: it generates, ends and is read by transformers as it was trained."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import rankpo
from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.models.loading import LoadingError
from rankpo.models.random_weights import byte_tokenizer
from tests.models.saved import saved
from tests.runs import train, trainer_of

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [{"role": "user", "content": "What colour is snow?"}]
ANSWERS = ("White.", "I would say: Green.")


def checkpoint(folder, *, tied=False, positions=512, extra=(), template=CHATML):
    """A tiny Llama whose turns end otherwise than its texts, with a policy of its own in generation_config."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|eot|>"]})
    tokenizer.chat_template = template
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot|>")]
    model.generation_config = GenerationConfig(eos_token_id=ends, repetition_penalty=1.1, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.add_tokens(list(extra))
    tokenizer.save_pretrained(folder)
    return folder


def options(source, *more):
    return (
        "model=base",
        "kind=causal_lm",
        f"model.name_or_path={source}",
        "model.max_length=192",
        "model.max_prompt_length=160",
        "datasets=[toy_chat]",
        "datasets.toy_chat.num_examples=10",
        "trainer.log_every=1",
        "trainer.batch_size=4",
        "trainer.max_steps=2",
        "optimizer=sgd",
        "optimizer.lr=0.3",
        "scheduler=constant",
        "scheduler.warmup=0",
        *more,
    )


def trained(tmp_path, name, source, *more):
    train(*options(source, *more), f"exp_name={name}", f"cache_dir={tmp_path}")
    return tmp_path / name / "FINAL"


def test_it_stops_at_every_end_token_of_training(tmp_path):
    """Of turns, of plain texts, and those that the base model had; the rest of its policy stays."""
    final = trained(tmp_path, "sft", checkpoint(tmp_path / "base"), "loss=sft")
    tokenizer, config = AutoTokenizer.from_pretrained(final), GenerationConfig.from_pretrained(final)
    names = sorted(tokenizer.convert_ids_to_tokens(config.eos_token_id))
    assert names == ["<|eot|>", "<|im_end|>", "[SEP]"] and config.repetition_penalty == 1.1
    ids = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = AutoModelForCausalLM.from_pretrained(final)
    with torch.no_grad():  # a head that writes the end of a turn, and would go on for ever
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("<|im_end|>")] = 1.0
        model.model.norm.weight.fill_(0.0)
    model.model.norm.register_forward_hook(lambda module, arguments, output: torch.ones_like(output))
    assert model.generate(**ids, max_new_tokens=9).shape[1] == ids["input_ids"].shape[1] + 1


def test_a_reward_is_read_where_it_was_trained(tmp_path):
    """The template puts a line break behind the end of a turn; transformers reads the reward at a text's last token."""
    final = trained(tmp_path, "reward", checkpoint(tmp_path / "base"), "loss=bradley-terry", "trainer.max_steps=4")
    model = AutoModelForSequenceClassification.from_pretrained(final).eval()
    tokenizer = AutoTokenizer.from_pretrained(final)
    found = []
    for answer in ANSWERS:
        turns = [*TURNS, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        assert tokenizer.decode(ids["input_ids"][0]).endswith(f"{answer}<|im_end|>")
        with torch.no_grad():
            found.append(float(model(**ids).logits[0, 0]))
    prompt = (("user", TURNS[0]["content"]),)
    ours = rankpo.load(final, "cpu").rewards([prompt] * 2, list(ANSWERS))
    assert ours.tolist() == pytest.approx(found, abs=1e-5)
    several = [*TURNS, {"role": "assistant", "content": "White."}, *TURNS]
    asked = tokenizer.apply_chat_template(several, tokenize=False, add_generation_prompt=True)
    base = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert asked == base.apply_chat_template(several, tokenize=False, add_generation_prompt=True)
    # written again, it is the same
    saved(rankpo.load(final, "cpu"), tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == tokenizer.chat_template


def test_control_tokens_stand_in_the_template_and_the_card(tmp_path):
    """In a conversation's generation prompt; and a second stage does not put them there twice."""
    final = trained(tmp_path, "csft", checkpoint(tmp_path / "base"), "loss=csft")
    tokenizer = AutoTokenizer.from_pretrained(final)
    prompt = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False)
    settings = json.loads((final / "rankpo.json").read_text())["settings"]
    good, _ = settings["control_tokens"]
    assert prompt.endswith(f"<|im_start|>assistant\n{good}") and prompt.count(good) == 1
    assert good in (final / "README.md").read_text()
    loaded = rankpo.load(final, "cpu")
    sequences = loaded.inputs.sequences_of([(("user", TURNS[0]["content"]),)], ["White."])
    assert tokenizer.decode(sequences.input_ids) == f"{prompt}White.<|im_end|>"
    again = trained(tmp_path, "again", tmp_path / "base", "loss=csft", f"model.load_from={final}")
    assert AutoTokenizer.from_pretrained(again).chat_template == tokenizer.chat_template


def test_adapters_that_final_has_inside_are_refused(tmp_path):
    base = checkpoint(tmp_path / "base")
    lora = ("loss=sft", "model.use_peft=true")
    final = trained(tmp_path, "lora", base, *lora)
    with pytest.raises(ConfigError, match=r"load_lora_from=.*adapter is merged into .*FINAL already"):
        trainer_of(*options(final, *lora, f"model.load_lora_from={final}/adapter", f"cache_dir={tmp_path}"))
    going_on = options(base, *lora, f"model.load_lora_from={final}/adapter", f"cache_dir={tmp_path}")
    assert trainer_of(*going_on).policy.has_adapters


def test_tokens_without_embeddings_are_named(tmp_path):
    """Nobody set model.control_tokens, so it is not named."""
    base = checkpoint(tmp_path / "base", extra=["<new>"])
    with pytest.raises(ConfigError, match=r"has 1 tokens more than the model has embeddings \(<new>\).*use_peft=false"):
        trainer_of(*options(base, "loss=sft", "model.use_peft=true", f"cache_dir={tmp_path}"))
    with pytest.raises(ConfigError, match=r"model.control_tokens adds rows to the embeddings"):
        trainer_of(*options(base, "loss=csft", "model.use_peft=true", f"cache_dir={tmp_path}"))


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_on_embeddings(tmp_path, tied):
    """Merged into tied weights they would change the output head, which training did not: refused before training."""
    base = checkpoint(tmp_path / "base", tied=tied)
    lora = ("loss=sft", "model.use_peft=true", "model.peft.target_modules=[embed_tokens,q_proj]")
    if tied:
        with pytest.raises(LoadingError, match=r"puts adapters on model.embed_tokens, which shares its weights"):
            trained(tmp_path, "lora", base, *lora)
    else:
        assert (trained(tmp_path, "lora", base, *lora) / "model.safetensors").exists()


def test_dropout_of_adapters_that_does_nothing_is_said(tmp_path, capsys):
    base = checkpoint(tmp_path / "base")
    lora = ("loss=sft", "model.use_peft=true", "model.peft.lora_dropout=0.1", "trainer.max_steps=1")
    trained(tmp_path, "off", base, *lora)
    said = "model.peft.lora_dropout=0.1 has no effect, because trainer.dropout is false"
    assert said in capsys.readouterr().err
    trained(tmp_path, "on", base, *lora, "trainer.dropout=true")
    assert said not in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["sft", "bradley-terry"])
def test_lengths_beyond_the_positions_are_refused(tmp_path, loss):
    base = checkpoint(tmp_path / "base", positions=64)
    with pytest.raises(
        ConfigError, match=r"model.max_length=192, but the model has 64 positions; lower it to 64 or less"
    ):
        trainer_of(*options(base, f"loss={loss}", f"cache_dir={tmp_path}"))


def test_pairs_that_are_equal_after_the_cut_are_left_out(tmp_path, capsys):
    same = "word " * 60
    records = [{"prompt": f"q{n}", "chosen": same + f"a{n}", "rejected": same + "b"} for n in range(3)]
    records.append({"prompt": "q", "chosen": "good", "rejected": "bad"})
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = ("datasets=[chat]", f"datasets.chat.path={path}", f"cache_dir={tmp_path}")
    base = checkpoint(tmp_path / "base")
    tiny = [item for item in options(base, "loss=simpo") if not item.startswith("datasets")]
    trainer = trainer_of(*tiny, *data)
    assert trainer.loader.items[:, 0].tolist() == [3]
    train(*tiny, *data, "exp_name=run")
    assert "3 of 4 pairs are excluded: truncated to model.max_length, both answers are equal" in capsys.readouterr().err
    assert len(trainer_of(*[item for item in tiny if "loss=" not in item], "loss=sft", *data).loader.items) == 4


def test_kto_with_few_prompts_stops_before_it_starts(tmp_path):
    """Of all updates, not only those of the first epoch."""
    records = [{"prompt": "p", "completion": f"c{n}", "label": bool(n % 2)} for n in range(6)]
    records.append({"prompt": "q", "completion": "d", "label": True})
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    base = checkpoint(tmp_path / "base")
    tiny = [item for item in options(base, "loss=kto") if not item.startswith(("datasets", "trainer.max_steps"))]
    data = ("datasets=[chat]", f"datasets.chat.path={path}", f"cache_dir={tmp_path}", "trainer.epochs=12")
    with pytest.raises(ValueError, match=r"update \d+ has one prompt only, and KTO's reference point needs two"):
        trainer_of(*tiny, *data)


def test_template_files_are_read_into_the_settings(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML)
    experiment = compose(["model=tiny_llama", "kind=causal_lm", "loss=sft", f"model.chat_template={path}"])
    assert experiment.model.settings.chat_template == CHATML
    with pytest.raises(ConfigError, match=r"model.chat_template=nowhere.jinja is neither a template, .*, nor a file"):
        compose(["model=tiny_llama", "kind=causal_lm", "loss=sft", "model.chat_template=nowhere.jinja"])
