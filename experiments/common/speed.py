"""What the studies of speed time: networks of random weights on random data."""

import jax
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.network import Network

MINILM = {"num_layers": 6, "hidden_size": 384, "intermediate_size": 1536}
SMALL = {"num_layers": 3, "hidden_size": 24, "intermediate_size": 96}


def random_images(examples: int, *, small: bool) -> tuple[Network, Dataset]:
    """Returns ResNet-26 and images of CIFAR's size; `small` has three blocks."""
    blocks = (1,) * 3 if small else (4,) * 3
    network = resnet(ResNetConfig(blocks=blocks), jax.random.key(0))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (examples, 32, 32, 3), dtype=np.uint8)
    return network, Dataset(pixels, np.arange(examples, dtype=np.int32) % 10)


def random_texts(
    examples: int, tokens: int, config: BertConfig
) -> tuple[Network, Dataset]:
    """Returns an encoder and token ids without padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, config.vocab_size, (examples, tokens), dtype=np.int32)
    x = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    x["token_type_ids"] = np.zeros_like(ids)
    data = Dataset(x, np.arange(examples, dtype=np.int32) % 2)
    return bert(config, jax.random.key(0)), data


def last_two(network: Network) -> list[str]:
    """Returns the last two blocks or layers of a network, and all stages behind them."""
    names = [stage.name for stage in network.stages if network.params[stage.name]]
    blocks = [name for name in names if name.startswith(("block", "layer"))]
    return names[names.index(blocks[-2]) :]


def require_no_data(settings) -> None:
    """Raises `InputError` where weights or data are named."""
    if settings.common.weights or settings.common.data_dir:
        raise InputError(
            "data and weights are random here: --weights and --data-dir have no use"
        )
