import pytest
import timm
import torch
from safetensors.torch import save_file

from pipelines.config import parse_config
from pipelines.errors import UserError
from pipelines.network import build_network
from pipelines.teacher import build_criterion

CPU = torch.device("cpu")


def _config(tree, **distill):
    return parse_config({**tree, "loss": {"distill": distill}}, origin="test")


@pytest.fixture
def weights(tmp_path):
    """A tiny teacher of three classes, and the file of its weights."""
    torch.manual_seed(1)
    teacher = timm.create_model("test_resnet", num_classes=3).eval()
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    return teacher, str(tmp_path / "teacher.safetensors")


def test_any_network_of_timm_teaches(tiny_tree, weights):
    teacher, path = weights
    config = _config(tiny_tree, teacher="test_resnet", weights=path, share=0.25, temperature=3.0)
    criterion = build_criterion(config, build_network(config.model), CPU)
    images = torch.randn(4, 3, 16, 16)
    assert (criterion.distill, criterion.temperature) == (0.25, 3.0)
    torch.testing.assert_close(criterion.teacher(images), teacher(images).detach())
    assert not criterion.teacher(images).requires_grad


def test_a_spiking_network_teaches_by_its_mean_over_time(tiny_tree, tmp_path):
    options = {"width": 4, "stem": "cifar", "num_steps": 2, "method": "full_precision"}
    teacher = timm.create_model("agmm_resnet18", num_classes=3, **options).eval()
    save_file(teacher.state_dict(), tmp_path / "t.safetensors")
    weights = str(tmp_path / "t.safetensors")
    config = _config(tiny_tree, teacher="agmm_resnet18", weights=weights, options=options)
    criterion = build_criterion(config, build_network(config.model), CPU)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(criterion.teacher(images), teacher(images).mean(0).detach())


def test_a_teacher_of_other_classes_is_refused(tiny_tree, weights):
    tiny_tree["model"]["num_classes"] = 4
    config = _config(tiny_tree, teacher="test_resnet", weights=weights[1])
    with pytest.raises(UserError, match="Cannot load teacher"):  # the head's weights have three rows
        build_criterion(config, build_network(config.model), CPU)


def test_q_snn_brings_its_penalty_and_others_none(tiny_tree):
    plain = parse_config(tiny_tree, origin="test")
    assert build_criterion(plain, build_network(plain.model), CPU).penalty is None
    rectified = {**tiny_tree["model"], "method": "q_snn", "neuron": {"kind": "relu"}, "time_steps": 1}
    silent = parse_config({**tiny_tree, "model": rectified}, origin="test")
    assert build_criterion(silent, build_network(silent.model), CPU).penalty is None
    tiny_tree["model"]["method"] = "q_snn"
    config = parse_config(tiny_tree, origin="test")
    network = build_network(config.model)
    criterion = build_criterion(config, network, CPU)
    network(torch.randn(2, 3, 16, 16))
    assert 0 < criterion.penalty().item() <= 5e-3 * 0.25


@pytest.mark.parametrize(
    ("distill", "words"),
    [
        ({"teacher": "resnet1", "weights": "{w}"}, "Unknown teacher 'resnet1'"),
        ({"teacher": "test_resnet", "weights": "/none/t.safetensors"}, "Cannot load teacher test_resnet"),
        ({"teacher": "test_vit", "weights": "{w}"}, "Cannot load teacher test_vit"),
        ({"teacher": "test_resnet", "weights": "{w}", "options": {"colour": 1}}, "Cannot load teacher"),
        (
            {"teacher": "test_resnet", "weights": "{g}", "options": {"in_chans": 1}},
            "does not take the student's images .B, 3, 16, 16.",
        ),
    ],
)
def test_a_teacher_that_cannot_be_had_is_refused(tiny_tree, tmp_path, weights, distill, words):
    grey = str(tmp_path / "grey.safetensors")
    save_file(timm.create_model("test_resnet", num_classes=3, in_chans=1).state_dict(), grey)
    config = _config(tiny_tree, **{**distill, "weights": distill["weights"].format(w=weights[1], g=grey)})
    with pytest.raises(UserError, match=words):
        build_criterion(config, build_network(config.model), CPU)


@pytest.mark.parametrize(
    ("distill", "words"),
    [
        ({"teacher": "test_resnet"}, "needs either pretrained=true or the path of its weights"),
        ({"teacher": "test_resnet", "weights": "t.pth"}, "other formats can run code"),
        ({"teacher": "a", "weights": "t.safetensors", "options": {"checkpoint_path": "x.pth"}}, "checkpoint_path: the"),
    ],
)
def test_a_teacher_that_knows_nothing_or_may_run_code_is_refused(tiny_tree, distill, words):
    with pytest.raises(UserError, match=words):
        _config(tiny_tree, **distill)
