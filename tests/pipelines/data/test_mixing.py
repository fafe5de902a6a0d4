import numpy as np
import pytest
import torch
from timm.data import mixup

from pipelines.config import AugmentConfig, DataConfig, MixConfig
from pipelines.data import plan
from pipelines.data.mixing import Mixer, check_pairs, draw_mixes
from pipelines.errors import UserError

SIZE, COUNT = 16, 2000
IDS = plan.epoch_order(COUNT, 0, 0)
BOTH = MixConfig(mixup=0.2, cutmix=1.0, probability=0.8, switch_probability=0.25)


def config(mix: MixConfig, batch_size: int = 12) -> DataConfig:
    return DataConfig(dataset="x", resolution=SIZE, batch_size=batch_size, augment=AugmentConfig(mix=mix))


def areas(box: torch.Tensor) -> torch.Tensor:
    return (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])


def test_a_pairs_mix_depends_on_its_ids_and_the_epoch_alone() -> None:
    whole = draw_mixes(IDS, COUNT, BOTH, SIZE, 1, 0)
    part = draw_mixes(IDS[600:900], COUNT, BOTH, SIZE, 1, 0)
    assert torch.equal(part.share, whole.share[300:450])
    assert torch.equal(part.box, whole.box[300:450])
    for seed, epoch in ((1, 1), (2, 0)):
        assert not torch.equal(draw_mixes(IDS, COUNT, BOTH, SIZE, seed, epoch).share, whole.share)


@pytest.mark.parametrize("world", [2, 3])
def test_any_world_mixes_the_same_pairs(world: int) -> None:
    def mixer(rank: int, world: int) -> Mixer:
        part = plan.rank_slice(12, rank, world)
        return Mixer(
            config(BOTH),
            1,
            COUNT,
            part.stop - part.start,
            lambda epoch: plan.training_ids(COUNT, 12, 1, epoch, rank, world).ravel(),
        )

    whole, ranks = mixer(0, 1), [mixer(rank, world) for rank in range(world)]
    for epoch, step in ((0, 0), (0, 5), (1, 165), (0, 5)):
        expected, parts = whole.batch(epoch, step), [rank.batch(epoch, step) for rank in ranks]
        assert len(expected.share) == 6
        assert torch.equal(torch.cat([part.share for part in parts]), expected.share)
        assert torch.equal(torch.cat([part.box for part in parts]), expected.box)


def test_shares_are_as_often_what_the_recipe_says() -> None:
    share, box = draw_mixes(IDS, COUNT, BOTH, SIZE, 0, 0)
    is_cut = areas(box) > 0
    torch.testing.assert_close(share[is_cut], 1 - areas(box[is_cut]) / SIZE**2)
    # A pair in five is left alone, and some draws are close to 1; of the others a quarter is cut.
    assert 0.15 < (share == 1).float().mean() < 0.3
    assert 0.15 < is_cut.float().mean() < 0.25
    blended = share[(share < 1) & ~is_cut].double()
    # Beta(0.2, 0.2): mean 1/2, variance 1 / (4 * 1.4).
    assert abs(blended.mean() - 0.5) < 0.06
    assert abs(blended.var() - 1 / 5.6) < 0.03


@pytest.mark.parametrize("mix", [MixConfig(mixup=1.0), MixConfig(cutmix=1.0)])
def test_one_alone_needs_no_switch(mix: MixConfig) -> None:
    share, box = draw_mixes(IDS, COUNT, mix, SIZE, 0, 0)
    assert bool(areas(box).any()) == (mix.cutmix > 0)
    assert (share < 1).float().mean() > 0.9


def test_boxes_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same share and centre; the borders clip both, and the share follows."""
    mix = MixConfig(cutmix=1.0)
    share, box = draw_mixes(IDS[:200], COUNT, mix, SIZE, 0, 0)
    generator = plan.generator_of(0, 0, plan.MIX)
    centres, shares = generator.random((COUNT, 4))[:, 2:], generator.beta(1.0, 1.0, COUNT)
    for pair, first in enumerate(IDS[:200:2].tolist()):
        drawn = iter((centres[first] * SIZE).astype(int).tolist())
        monkeypatch.setattr(np.random, "randint", lambda *_, drawn=drawn, **__: next(drawn))
        expected, lam = mixup.cutmix_bbox_and_lam((1, SIZE, SIZE), shares[first])
        assert box[pair].tolist() == [int(end) for end in expected]
        assert share[pair].item() == pytest.approx(lam)


@pytest.mark.parametrize(("batch", "world", "words"), [(9, 1, "multiple of 2 (8 or 10)"), (12, 4, "of 8 (8 or 16)")])
def test_a_pair_on_two_workers_is_refused(batch: int, world: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_pairs(config(BOTH, batch), world)
    assert words in str(caught.value)
    check_pairs(config(MixConfig(mixup=0.2, probability=0), batch), world)
    check_pairs(config(BOTH, 24), world)


def test_draws_have_golden_values() -> None:
    """A change here changes what every stored run would see on resume."""
    share, box = draw_mixes(np.arange(12), 12, BOTH, SIZE, 0, 0)
    assert [round(value, 4) for value in share.tolist()] == GOLDEN_SHARES
    assert box[areas(box) > 0].tolist() == GOLDEN_BOXES


GOLDEN_SHARES = [1.0, 1.0, 0.5781, 0.6133, 0.6145, 0.0803]
GOLDEN_BOXES = [[1, 13, 7, 16], [7, 16, 0, 11]]
