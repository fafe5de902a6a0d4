from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment

from pipelines.config import AugmentConfig, DataConfig
from pipelines.data import pixels
from pipelines.data.pixels import PixelAugment, apply_operations, cut_out, make_policy

SIZE = 24
FILL = (90, 100, 110)
AUTO = AugmentConfig(policy="autoaugment_cifar10")
RAND = AugmentConfig(policy="randaugment", randaugment={"num_ops": 2, "magnitude": 13})


@pytest.fixture
def image(picture: Callable[..., Image.Image]) -> np.ndarray:
    return np.array(picture(5, SIZE, SIZE))


def applied(augment: AugmentConfig, draws: list[float], image: np.ndarray) -> np.ndarray:
    out = image.copy()
    apply_operations(out, make_policy(augment, SIZE)(draws), FILL)
    return out


@pytest.mark.parametrize("which", range(25))
def test_autoaugment_is_torchvisions(which: int, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sub-policy with all its operations and with the likely ones, both ways, against torchvision's forward."""
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=list(FILL))
    for chance in (0.05, 0.55):
        for sign in (0, 1):
            given = which, torch.tensor([chance, chance]), torch.tensor([sign, sign])
            monkeypatch.setattr(theirs, "get_params", lambda _, given=given: given)
            ours = applied(AUTO, [(which + 0.5) / 25, chance, chance, sign * 0.9, sign * 0.9], image)
            assert np.array_equal(ours, np.asarray(theirs(Image.fromarray(image))))


@pytest.mark.parametrize("which", range(14))
def test_randaugment_is_torchvisions(which: int, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation in both directions, then Brightness, which has one too."""
    space = RandAugment()._augmentation_space(31, (SIZE, SIZE))
    (_, signed), second = list(space.values())[which], list(space).index("Brightness")
    for backwards in (0, 1):
        drawn = iter([which, *[backwards] * signed, second, backwards])
        monkeypatch.setattr(torch, "randint", lambda *_, drawn=drawn: torch.tensor(next(drawn)))
        theirs = RandAugment(2, 13, fill=list(FILL))(Image.fromarray(image))
        sign = 0.9 - 0.8 * backwards
        ours = applied(RAND, [(which + 0.5) / 14, (second + 0.5) / 14, sign, sign], image)
        assert np.array_equal(ours, np.asarray(theirs))


def test_draws_have_golden_values(images: Callable[[], torch.Tensor]) -> None:
    """A change here changes what every stored run would see on resume."""
    data = DataConfig.model_validate({"dataset": "x", "augment": BOTH})
    augmenter = PixelAugment(data, seed=0, count=4)
    policy, cutout = augmenter._draws(np.arange(4), 0)
    augmenter.close()
    names = [[name for name, _ in make_policy(AUTO, SIZE)(row)] for row in policy.tolist()]
    assert names == GOLDEN_NAMES
    assert (cutout * 32).astype(int).tolist() == GOLDEN_CENTRES


def test_chances_are_the_policys() -> None:
    """Sub-policy 1 of AutoAugment turns with probability 0.7 and shifts with probability 0.3."""
    choose = make_policy(AUTO, SIZE)
    names = [
        [name for name, _ in choose([1.5 / 25, first, second, 0.0, 0.9])]
        for first, second in [(0.69, 0.29), (0.71, 0.29), (0.69, 0.31), (0.71, 0.31)]
    ]
    assert names == [["Rotate", "TranslateX"], ["TranslateX"], ["Rotate"], []]
    assert len(choose([1 - 2**-24] + [0.0] * 4)) == 2


@pytest.mark.parametrize(
    ("y", "x", "rows", "columns"),
    [(0.5, 0.5, (2, 6), (2, 6)), (0.0, 0.99, (0, 2), (5, 8)), (0.99, 0.25, (5, 8), (0, 4))],
)
def test_cutout_on_paper(y: float, x: float, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    cut_out(image, y, x, 4, (1, 2, 3))
    expected = np.zeros_like(image)
    expected[slice(*rows), slice(*columns)] = (1, 2, 3)
    assert np.array_equal(image, expected)


BOTH = AugmentConfig(policy="autoaugment_cifar10", cutout=7)


def through(
    images: torch.Tensor,
    ids: np.ndarray,
    *,
    augment: AugmentConfig = BOTH,
    epoch: int = 0,
    batch: int = 4,
    threads: int = 1,
) -> torch.Tensor:
    data = DataConfig.model_validate(
        {"dataset": "x", "resolution": SIZE, "augment": augment, "threads": threads, "mean": [0.1, 0.2, 0.3]}
    )
    augmenter = PixelAugment(data, seed=3, count=50)
    parts = (images[start : start + batch].permute(0, 3, 1, 2) for start in range(0, len(images), batch))
    out = torch.cat(list(augmenter.through(parts, ids, epoch))).permute(0, 2, 3, 1)
    augmenter.close()
    return out


@pytest.fixture
def images(picture: Callable[..., Image.Image]) -> Callable[[], torch.Tensor]:
    """Twenty images, of memory of their own in each call: augmentation is in place."""
    stack = np.stack([np.asarray(picture(number, SIZE, SIZE)) for number in range(20)])
    return lambda: torch.from_numpy(stack.copy())


def test_a_samples_pixels_depend_on_its_id_and_the_epoch_alone(images: Callable[[], torch.Tensor]) -> None:
    ids = np.random.default_rng(0).permutation(50)[:20]
    whole = through(images(), ids)
    assert torch.equal(through(images(), ids, batch=3, threads=3), whole)
    assert torch.equal(through(images()[11:], ids[11:]), whole[11:])
    assert torch.equal(through(images().flip(0).contiguous(), ids[::-1]), whole.flip(0))
    changed = [not torch.equal(a, b) for a, b in zip(through(images(), ids, epoch=1), whole, strict=True)]
    assert sum(changed) == 20


def test_cutout_and_policy_draw_apart(images: Callable[[], torch.Tensor]) -> None:
    """Switching one on leaves the other's draws, and Cutout leaves the mean colour."""
    ids = np.arange(20)
    both = through(images(), ids)
    policy = through(images(), ids, augment=AugmentConfig(policy="autoaugment_cifar10"))
    cutout = through(images(), ids, augment=AugmentConfig(cutout=7))
    cut = (cutout == torch.tensor([26, 51, 76], dtype=torch.uint8)).all(-1)
    assert torch.equal(torch.where(cut[..., None], cutout, policy), both)
    assert torch.equal(cutout[~cut], images()[~cut])
    assert 16 <= cut.sum(dim=(1, 2)).min() <= cut.sum(dim=(1, 2)).max() == 49


def test_a_failure_in_a_thread_is_raised(images: Callable[[], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pixels, "cut_out", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        through(images(), np.arange(20))


def test_batches_are_asked_for_ahead(images: Callable[[], torch.Tensor]) -> None:
    """While a batch is trained on, the two after it are being augmented."""
    asked: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        for number in range(5):
            asked.append(number)
            yield images()[:4].permute(0, 3, 1, 2)

    augmenter = PixelAugment(DataConfig(dataset="x", augment=BOTH), seed=0, count=20)
    made = augmenter.through(batches(), np.arange(20), 0)
    next(made)
    assert asked == [0, 1, 2]
    made.close()
    augmenter.close()


GOLDEN_NAMES = [[], ["TranslateY", "AutoContrast"], ["Rotate"], ["Brightness"]]
GOLDEN_CENTRES = [[31, 9], [22, 27], [24, 29], [30, 14]]
