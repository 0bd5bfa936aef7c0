"""The commands of Ra-DPO's README, with other paths and a tiny model: sft, then dpo and ra-dpo from it; kto and ppo too."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from rankpo.data.generated.toy_chat import ToyChat
from tests.runs import ROOT, curve, train
from tests.toy_tokenizers import byte_bpe

LAUNCH = f"{sys.executable} -m accelerate.commands.accelerate_cli launch --config_file accelerate_config/cpu.yaml"
SFT = (
    "loss=sft model=pythia datasets=[hh] exp_name=pythia_sft run_count=run1 "
    "++model.name_or_path=HH_pretrained_model/EleutherAI/pythia-tiny"
)
ALIGNED = "model=pythia datasets=[hh] run_count=run1 ++model.name_or_path=HH_pretrained_model/EleutherAI/pythia-tiny"
FROM_SFT = "++model.load_from=.cache/pythia_sft/run1/FINAL"
COMMANDS = {
    "pythia_sft": SFT,
    "HH_py14_sft_dpo": f"loss=dpo {ALIGNED} exp_name=HH_py14_sft_dpo {FROM_SFT}",
    "HH_py14_sft_ra_dpo1_cl0.99": (
        f"loss=ra-dpo {ALIGNED} exp_name=HH_py14_sft_ra_dpo1_cl0.99 {FROM_SFT} ++loss.confidence_level=0.99"
    ),
    "kto": f"loss=kto {ALIGNED} exp_name=kto {FROM_SFT}",
    "ppo": f"loss=ppo {ALIGNED} exp_name=ppo {FROM_SFT}",
    "tdpo2": f"loss=tdpo {ALIGNED} exp_name=tdpo2 ++loss.if_tdpo2=true ++model.load_from=.cache/HH_py14_sft_dpo/run1/FINAL",
}
FIRST = {"pythia_sft": None, "kto": 0.5, "ppo": None}  # the others begin with log 2
# what the README leaves to its config, and where its data are: beside the command, so that nothing of it is changed
SMALL = (
    "datasets.hh.hub=null datasets.hh.path=hh.jsonl trainer.batch_size=4 trainer.log_every=1 trainer.epochs=2 "
    "optimizer.lr=0.003 model.max_length=192 model.max_prompt_length=160"
)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Preferences in the form of hh-rlhf, and a GPT-NeoX of 30,000 weights where the README has Pythia."""
    with (tmp_path / "hh.jsonl").open("w") as file:
        for example in ToyChat(name="t", num_examples=8).examples():
            names = {"user": "Human", "assistant": "Assistant", "system": "Human"}
            turns = example.query if example.query[0][0] != "system" else example.query[1:]
            asked = "".join(f"\n\n{names[role]}: {text}" for role, text in turns) + "\n\nAssistant: "
            chosen, rejected = (asked + text for text in example.candidates)
            file.write(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n")
    tokenizer = byte_bpe("th", "in")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "HH_pretrained_model" / "EleutherAI" / "pythia-tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(workplace, name):
    """FINAL loads in transformers alone, answers, and has moved away from the model before it."""
    run = workplace / "runs" / name / "run1"
    loaded = AutoModelForCausalLM.from_pretrained(run / "FINAL")
    tokenizer = AutoTokenizer.from_pretrained(run / "FINAL")
    assert isinstance(loaded, GPTNeoXForCausalLM)
    ids = tokenizer("What colour is snow?", return_tensors="pt")["input_ids"]
    assert loaded.generate(ids, max_new_tokens=3, pad_token_id=0).shape[1] > ids.shape[1]
    before = "HH_pretrained_model/EleutherAI/pythia-tiny" if name == "pythia_sft" else "runs/pythia_sft/run1/FINAL"
    start = AutoModelForCausalLM.from_pretrained(workplace / before)
    moved = (loaded(input_ids=ids).logits - start(input_ids=ids).logits).abs().max()
    assert moved > 1e-3
    losses = curve(run)
    assert len(losses) in (4, 8) and all(map(math.isfinite, losses))
    first = FIRST.get(name, math.log(2))
    if first is not None:
        assert_close(losses[0], first, atol=1e-6, rtol=0)


def test_the_readmes_commands_in_this_process(workplace):
    for name, command in COMMANDS.items():
        train(*shlex.split(command), *SMALL.split())
        check(workplace, name)
    losses = curve(workplace / "runs" / "pythia_sft" / "run1")
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.slow
def test_the_readmes_commands_as_they_stand(workplace):
    """Through accelerate launch, with its own port; 20 s each."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    (workplace / "accelerate_config").symlink_to(ROOT / "accelerate_config")
    for name, command in COMMANDS.items():
        words = shlex.split(f"{LAUNCH} --main_process_port 29517 {ROOT}/launch.py {command} {SMALL}")
        done = subprocess.run(words, cwd=workplace, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        check(workplace, name)
