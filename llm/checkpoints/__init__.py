"""Models at rest: Hugging Face directories, the hub, GGUF files and models known by name, all read lazily."""

from .atomic import atomic_directory, atomic_file, check_output
from .base import Checkpoint, StoredTensor, StoredWeights
from .gguf import read_gguf_file
from .hf import read_hf_directory
from .layout import check_layout, tensor_shapes
from .named import NAMED_MODELS, NamedModel
from .resolve import READERS, Reader, load_checkpoint
from .write import write_hf_directory, write_safetensors

__all__ = [
    "NAMED_MODELS",
    "READERS",
    "Checkpoint",
    "NamedModel",
    "Reader",
    "StoredTensor",
    "StoredWeights",
    "atomic_directory",
    "atomic_file",
    "check_layout",
    "check_output",
    "load_checkpoint",
    "read_gguf_file",
    "read_hf_directory",
    "tensor_shapes",
    "write_hf_directory",
    "write_safetensors",
]
