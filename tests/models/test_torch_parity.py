"""Logits against PyTorch: transformers, timm and torchvision with random weights.

Optional: `pip install torch torchvision transformers timm` beside the project.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from subtune_jax.models.load import load_pretrained
from subtune_jax.network import forward
from tests.fixtures.weights import TINY

torch = pytest.importorskip(
    "torch", reason="optional: pip install torch torchvision transformers timm"
)
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are not ours to mend
SMALL = TINY | {"num_hidden_layers": 3}
TEXT = SMALL | {"vocab_size": 60, "max_position_embeddings": 24}
IMAGE = SMALL | {"image_size": 32, "patch_size": 8}


def shaken(model):
    """Moves every tensor, so that none is 0, 1 or like another."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def saved(model, folder, config=None):
    """Writes the model as a folder that `load` reads."""
    if config is None:
        model.save_pretrained(folder, safe_serialization=True)
        return load_pretrained(folder)
    tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config))
    return load_pretrained(folder)


def texts(pad):
    rng = np.random.default_rng(0)
    mask = (np.arange(11)[None] < np.array([11, 6, 2])[:, None]).astype(np.int32)
    ids = rng.integers(5, 60, mask.shape).astype(np.int32)
    types = (np.arange(11)[None] > 3).astype(np.int32) * mask
    ids = np.where(mask == 1, ids, pad).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def images():
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)


def normalized(pixels, mean, std):
    x = (pixels / 255 - np.array(mean)) / np.array(std)
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


def agree(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0.05  # there is something to compare
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_bert(tmp_path, activation):
    config = transformers.BertConfig(**TEXT, hidden_act=activation)
    model = shaken(transformers.BertForSequenceClassification(config))
    x = texts(0)
    theirs = model(**{k: torch.tensor(v.astype(np.int64)) for k, v in x.items()})
    agree(saved(model, tmp_path)(x), theirs.logits)


def test_roberta(tmp_path):
    config = transformers.RobertaConfig(**TEXT, type_vocab_size=1, pad_token_id=1)
    model = shaken(transformers.RobertaForSequenceClassification(config))
    x = texts(1)
    x["token_type_ids"][:] = 0
    theirs = model(**{k: torch.tensor(v.astype(np.int64)) for k, v in x.items()})
    agree(saved(model, tmp_path)(x), theirs.logits)


def test_bert_spans(tmp_path):
    config = transformers.BertConfig(**(TEXT | {"num_labels": 2}))
    model = shaken(transformers.BertForQuestionAnswering(config))
    x = texts(0)
    theirs = model(**{k: torch.tensor(v.astype(np.int64)) for k, v in x.items()})
    model.save_pretrained(tmp_path, safe_serialization=True)
    ours = np.asarray(load_pretrained(tmp_path, head="span")(x))
    both = torch.stack([theirs.start_logits, theirs.end_logits], -1)
    real = x["attention_mask"] == 1
    agree(ours[real], both[torch.tensor(real)])


def test_vit_of_transformers(tmp_path):
    model = shaken(
        transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE))
    )
    theirs = model(normalized(images(), 0.5, 0.5)).logits
    agree(saved(model, tmp_path)(images()), theirs)


def test_the_image_tower_of_clip(tmp_path):
    shape = {k: v for k, v in IMAGE.items() if "drop" not in k and k != "num_labels"}
    model = shaken(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape)))
    model.save_pretrained(tmp_path, safe_serialization=True)
    found = load_pretrained(tmp_path, num_classes=2)
    mean, std = (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    )
    theirs = model(normalized(images(), mean, std)).pooler_output
    network = found
    ours, _ = forward(network.stages, network.params, network.stats, images(), stop=-1)
    agree(ours, theirs)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_vit_of_timm(tmp_path, pooling):
    timm = pytest.importorskip("timm")
    given = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, num_classes=3, global_pool=pooling, **given
    )
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "global_pool": pooling,
        "model_args": given,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5], "std": [0.5]},
    }
    theirs = shaken(model)(normalized(images(), 0.5, 0.5))
    agree(saved(model, tmp_path, config)(images()), theirs)


def test_vit_of_torchvision(tmp_path):
    models = pytest.importorskip("torchvision.models")
    model = shaken(
        models.VisionTransformer(
            image_size=32,
            patch_size=8,
            num_layers=3,
            num_heads=4,
            hidden_dim=32,
            mlp_dim=48,
            num_classes=3,
        )
    )
    names = {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "model_type": "vit"}
    config = IMAGE | names | {"id2label": {"0": "a", "1": "b", "2": "c"}}
    theirs = model(normalized(images(), 0.5, 0.5))
    agree(saved(model, tmp_path, config)(images()), theirs)
