"""Saving a model of any kind in tests, without the config that it was built from."""

from rankpo.models.causal_lm.saving import CausalFolder
from rankpo.models.embedding.saving import EmbeddingFolder
from rankpo.models.late_interaction.saving import LateInteractionFolder
from rankpo.models.listwise.saving import ListwiseFolder
from rankpo.models.reranker.saving import RerankerFolder
from rankpo.models.reward_model.saving import RewardFolder
from rankpo.models.saving import save

FOLDERS = {
    folder.kind: folder
    for folder in (
        *(CausalFolder, EmbeddingFolder, LateInteractionFolder, ListwiseFolder, RerankerFolder, RewardFolder),
    )
}


def saved(model, folder, description=None, **options):
    """Writes the folder and returns the largest difference. options: of the kind's folder format."""
    return save(folder, model, FOLDERS[model.kind](**options), description or {})
