"""Check that a loss and a model with a prior fit each other."""

from __future__ import annotations

from rankpo.errors import ConfigError
from rankpo.losses.base import Loss
from rankpo.models.embedding.settings import EmbeddingSettings


def check_prior(settings: object, loss: Loss) -> None:
    """Raises ConfigError if the loss cannot train the prior of the model, or needs a prior and the model has none.

    settings: the settings of the model, from the config or from the folder that it is loaded from.
    """
    layers = settings.prior_layers if isinstance(settings, EmbeddingSettings) else ()
    name = type(loss).__name__
    if layers and not loss.by_inner_products:
        what = "loss.matryoshka_dims" if loss.matryoshka is not None else name
        raise ConfigError(
            [
                f"{what} compares vectors by cosines, distances or their first dimensions, and a prior "
                f"(model.prior_layers={list(layers)}) is a dimension of inner products; set model.prior_layers=[], or choose "
                "a loss on inner products, such as rankpo, contrastive or graded_margin"
            ]
        )
    if loss.prior_weight and not layers:
        raise ConfigError(
            [
                f"loss.prior_weight={loss.prior_weight} needs a model with a prior; set model.prior_layers, such as "
                "[2,3,4], with kind=embedding"
            ]
        )
