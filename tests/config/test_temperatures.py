"""`loss.temperature=auto`: one default for cosines, another for sums of products and for logits."""

import json
from types import SimpleNamespace

import pytest

from rankpo.config.compose import compose
from rankpo.config.temperatures import resolved
from rankpo.models.late_interaction.settings import LateInteractionSettings
from rankpo.tasks.work.start_lines import _unfit_temperature
from tests.runs import train

BERT, PAIRS = "model=tiny_bert", "datasets=[toy_pairs]"
SUMMED = ("kind=late_interaction", "model.normalize_scores=false")
CASES = {
    ("loss=contrastive",): 0.02,
    ("loss=contrastive", "kind=sparse"): 1.0,  # SparseMultipleNegativesRankingLoss(scale=1)
    ("loss=contrastive", "kind=late_interaction"): 0.02,
    ("loss=contrastive", *SUMMED): 1.0,  # MultiVectorMultipleNegativesRankingLoss(scale=1)
    ("loss=contrastive", "kind=late_interaction", "model.normalize=false"): 1.0,
    ("loss=contrastive", "kind=hybrid"): 0.02,
    ("loss=contrastive", "model.normalize=false"): 1.0,
    ("loss=contrastive", "kind=sparse", "loss.temperature=0.3"): 0.3,
    ("loss=contrastive", "kind=sparse", "loss.temperature=auto"): 1.0,
    ("experiment=jobs_stage1", "kind=sparse"): 0.05,  # set by that yaml
    ("loss=rankpo",): 0.1,
    ("loss=rankpo", "kind=sparse"): 1.0,
    ("loss=rankpo", *SUMMED): 1.0,
    ("loss=rankpo", "kind=reranker"): 1.0,
    ("loss=graded_margin",): 0.05,
    ("loss=graded_margin", "kind=sparse"): 1.0,
    ("loss=dpo", "kind=embedding"): 0.05,
    ("loss=dpo", "kind=late_interaction"): 0.05,
    ("loss=dpo", *SUMMED): 1.0,
    ("loss=dpo", "model=tiny_pythia"): 1.0,
    ("loss=kto", "kind=sparse"): 1.0,
    ("loss=kl_distill",): 1.0,
    ("loss=kl_distill", "kind=sparse"): 1.0,
    ("loss=kl_distill", "kind=late_interaction"): 0.05,
    ("loss=kl_distill", *SUMMED): 1.0,
    ("loss=margin_mse", "kind=late_interaction"): 0.05,
    ("loss=margin_mse", *SUMMED): 1.0,
    ("loss=listmle", "kind=embedding"): 0.05,
    ("loss=pointwise",): 1.0,
}


@pytest.mark.parametrize("words", CASES, ids=[" ".join(words) for words in CASES])
def test_the_default_fits_the_scale_of_the_scores(words):
    experiment = compose([BERT, PAIRS, *words])
    assert experiment.loss.temperature == experiment.config["loss"]["temperature"] == CASES[words]


def test_losses_inside_of_others_and_of_one_dataset():
    mixture = compose([BERT, "loss=mixture", "kind=embedding", "datasets=[toy_graded]"]).loss
    assert [loss.temperature for loss in mixture.losses.values()] == [0.05, 0.05]
    own = [BERT, "loss=contrastive", "kind=sparse", "datasets=[toy_contrastive,toy_pairs]"]
    for words, expected in (
        (["datasets.toy_pairs.loss=rankpo"], 1.0),
        (["datasets.toy_pairs.loss=rankpo", "datasets.toy_pairs.temperature=0.5"], 0.5),
    ):
        (objective,) = filter(None, compose([*own, *words]).objectives)
        assert objective.loss.temperature == expected


def folder(path, files):
    path.mkdir()
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return f"model.load_from={path}"


FOLDERS = {  # the kind, the files of a folder, and the default of loss=rankpo
    "ours, summed": ("late_interaction", {"rankpo.json": {"kind": "late_interaction", "settings": {"normalize_scores": False}}}, 1.0),
    "ours, divided": ("late_interaction", {"rankpo.json": {"kind": "late_interaction", "settings": {"normalize_scores": True}}}, 0.1),
    "an embedding model to start from": ("late_interaction", {"rankpo.json": {"kind": "embedding", "settings": {"normalize": False}}}, 0.1),
    "maxsim": ("late_interaction", {"modules.json": [], "config_sentence_transformers.json": {"model_type": "MultiVectorEncoder", "similarity_fn_name": "maxsim"}}, 1.0),
    "meanmaxsim": ("late_interaction", {"modules.json": [], "config_sentence_transformers.json": {"model_type": "MultiVectorEncoder", "similarity_fn_name": "meanmaxsim"}}, 0.1),
    "Stanford": ("late_interaction", {"config.json": {"architectures": ["HF_ColBERT"]}}, 1.0),
    "our embedding": ("embedding", {"rankpo.json": {"kind": "embedding", "settings": {"normalize": False}}}, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_states_its_scale_before_it_is_loaded(tmp_path, name):
    kind, files, expected = FOLDERS[name]
    found = folder(tmp_path / "model", files)
    assert compose(["loss=rankpo", "model=minilm", f"kind={kind}", found, PAIRS]).loss.temperature == expected
    if kind == "late_interaction":  # The command line overrides the folder.
        words = ["loss=rankpo", "model=minilm", f"kind={kind}", found, PAIRS, "model.normalize_scores=true"]
        assert compose(words).loss.temperature == 0.1


def test_the_start_of_a_run_states_the_temperature(tmp_path, capfd):
    train(BERT, PAIRS, "loss=rankpo", "kind=sparse", "trainer.max_steps=1", f"cache_dir={tmp_path}", "exp_name=run")
    assert "loss RankPOLoss (temperature 1) · " in capfd.readouterr().err


def test_a_checkpoint_of_another_scale_than_assumed_is_reported():
    """The files of a checkpoint of the hub are known only once they have been fetched."""
    experiment = compose([BERT, PAIRS, "loss=rankpo", "kind=late_interaction"])

    def lines(settings, temperature):
        trainer = SimpleNamespace(policy=SimpleNamespace(settings=settings))
        return list(_unfit_temperature(experiment, trainer, temperature))

    (line,) = lines(LateInteractionSettings(normalize_scores=False), 0.1)
    assert "loss.temperature=0.1 is the default for cosines" in line and "products" in line
    assert line.endswith("the default for them is loss.temperature=1")
    assert lines(LateInteractionSettings(normalize_scores=False), 0.7) == []
    assert lines(LateInteractionSettings(), 0.1) == []


def test_what_is_no_loss_keeps_its_word():
    """A class of another kind then gets the check of its own type."""
    assert resolved({"_target_": "rankpo.tasks.train.Train", "temperature": "auto"}, "cosines")["temperature"] == "auto"
    assert resolved([{"temperature": "auto"}], "cosines") == [{"temperature": "auto"}]
