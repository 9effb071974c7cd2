"""Merged checkpoints, read by PyTorch, transformers, timm and their tokenizers.

Optional: pip install torch transformers timm.
"""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from subtune_jax import deltas, tree
from subtune_jax.models.files.folder import config_of
from subtune_jax.models.load import load_pretrained
from tests.models.test_reference import CASES, inputs, loaded

torch = pytest.importorskip("torch", reason="pip install torch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
CLOSE = {"atol": 3e-5, "rtol": 3e-5}


def moved(network):
    """Returns the network with other values in all norms, one kernel and the head."""
    rng = np.random.default_rng(0)

    def change(path, leaf):
        tuned = "norm" in path or "head" in path or path.endswith("query/kernel")
        noise = 0.02 * rng.normal(size=leaf.shape)
        return leaf + noise.astype(leaf.dtype) if tuned else leaf

    return network._replace(params=tree.map_with_path(change, network.params))


def normalized(x, images):
    mean, std = (np.array(images[name]) for name in ("image_mean", "image_std"))
    x = (x / 255 - mean) / std
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def assert_only_tuned_tensors_differ(base, merged):
    theirs, ours = tensors_of(base), tensors_of(merged.folder)
    assert theirs.keys() == ours.keys()
    differing = {n for n in theirs if theirs[n].tobytes() != ours[n].tobytes()}
    assert differing == set(merged.changed) and 0 < len(differing) < len(theirs)


def test_minilm_is_read_by_transformers_and_its_tokenizer(minilm, tmp_path):
    transformers = pytest.importorskip("transformers")
    draw = jax.random.key(0)
    base = load_pretrained(minilm, num_classes=2, key=draw, pooling="mean", dropout=0.0)
    tuned = moved(base)
    delta = deltas.extract(base, tuned)
    network = deltas.open_task(deltas.from_bytes(deltas.to_bytes(delta)))
    merged = deltas.merge(network, tmp_path / "merged")
    assert_only_tuned_tensors_differ(minilm, merged)
    model, report = transformers.AutoModel.from_pretrained(
        merged.folder, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged.folder)
    x = tokenizer(
        ["A cat sat.", "Who are you, and why?"], padding=True, return_tensors="pt"
    )
    head = torch.nn.Linear(384, 2)
    head.load_state_dict(
        {n: torch.tensor(t) for n, t in load_file(merged.head).items()}
    )
    with torch.no_grad():
        hidden = model.eval()(**x).last_hidden_state
        mask = x["attention_mask"][..., None].float()
        theirs = head((hidden * mask).sum(1) / mask.sum(1)).numpy()
    ours = network({name: array.numpy() for name, array in x.items()})
    np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_a_classifier_is_read_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    case = CASES["bert, gelu"]
    network = moved(loaded(case, tmp_path))
    merged = deltas.merge(network, tmp_path / "merged")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        merged.folder
    )
    x = {n: torch.tensor(v.astype(np.int64)) for n, v in inputs(case).items()}
    theirs = model.eval()(**x).logits.detach().numpy()
    np.testing.assert_allclose(network(inputs(case)), theirs, **CLOSE)


def test_a_vit_is_read_by_timm(tmp_path):
    timm = pytest.importorskip("timm")
    case = CASES["vit of timm, token"]
    network = moved(loaded(case, tmp_path))
    merged = deltas.merge(network, tmp_path / "merged")
    config = config_of(merged.folder)
    size = config["pretrained_cfg"]["input_size"][-1]
    model = timm.create_model(
        config["architecture"], num_classes=3, img_size=size, **config["model_args"]
    )
    tensors = {n: torch.tensor(t) for n, t in tensors_of(merged.folder).items()}
    model.load_state_dict(tensors, strict=True)
    theirs = model.eval()(normalized(inputs(case), case["images"])).detach().numpy()
    np.testing.assert_allclose(network(inputs(case)), theirs, **CLOSE)


def test_resnet26_is_read_by_pytorch(real_data, tmp_path):
    from tests.fixtures.torch_resnets import ResNet

    folder = real_data / "weights" / "resnet26_gn_cifar10"
    network = moved(load_pretrained(folder))
    merged = deltas.merge(network, tmp_path / "merged")
    assert_only_tuned_tensors_differ(folder, merged)
    config = config_of(merged.folder)
    model = ResNet(config)
    tensors = {n: torch.tensor(t) for n, t in tensors_of(merged.folder).items()}
    model.load_state_dict(tensors, strict=True)
    x = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    images = {f"image_{n}": config["normalization"][n] for n in ("mean", "std")}
    theirs = model.eval()(normalized(x, images)).detach().numpy()
    np.testing.assert_allclose(network(x), theirs, atol=2e-4, rtol=2e-4)
