"""The linear layers of a hybrid model on disk: FlagEmbedding's sparse_linear and colbert_linear, as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from rankpo.models.loading import LoadingError
from rankpo.models.tensors import read_tensors

if TYPE_CHECKING:
    from rankpo.models.hybrid.model import HybridModel

LAYERS = ("sparse_linear", "colbert_linear")
CONVERT = (
    'python -c "import torch, safetensors.torch as s; [s.save_file({k: v.float().contiguous() for k, v in '
    "torch.load(f'{n}.pt', map_location='cpu', weights_only=True).items()}, f'{n}.safetensors') "
    "for n in ('sparse_linear', 'colbert_linear')]\""
)


def read_layers(model: HybridModel, folder: Path, new_layers: bool) -> None:
    """Reads the weights of both layers. new_layers: keeps the random weights if the folder has none.

    Raises LoadingError for pickles, missing files and tensors of other sizes.
    """
    missing = [name for name in LAYERS if not (folder / f"{name}.safetensors").exists()]
    if missing and any((folder / f"{name}.pt").exists() for name in LAYERS):
        raise LoadingError(
            f"{folder} has pickled layers ({missing[0]}.pt); rankpo does not open pickles, since they can run code. If you "
            f"trust the folder, convert the layers there: {CONVERT}"
        )
    if missing and not (new_layers and len(missing) == len(LAYERS)):
        raise LoadingError(
            f"{folder} has no {missing[0]}.safetensors, which a hybrid model needs; convert FlagEmbedding's "
            f"{missing[0]}.pt, or set model.new_layers=true for new layers"
        )
    for name in LAYERS if not missing else ():
        layer = model.get_submodule(name)
        found, wanted = read_tensors(folder / f"{name}.safetensors"), layer.state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
        if shapes != {key: tuple(tensor.shape) for key, tensor in wanted.items()}:
            expected = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
            raise LoadingError(f"{folder / name}.safetensors holds {shapes}; {name} needs {expected}")
        layer.load_state_dict({key: tensor.float() for key, tensor in found.items()})


def write_layers(model: HybridModel, folder: Path) -> None:
    for name in LAYERS:
        state = model.get_submodule(name).state_dict()
        weights = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        save_file(weights, folder / f"{name}.safetensors")
