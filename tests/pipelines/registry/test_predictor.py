"""`mlflow.pyfunc.load_model` of a registered model: batches in, logits out, all else refused."""

import mlflow
import numpy as np
import pytest

from pipelines import registry
from pipelines.errors import UserError
from pipelines.pyfunc import Predictor
from pipelines.tracking import runs as tracking
from tests.pipelines.registry.helpers import logits


@pytest.fixture
def predictor(network, card):
    return Predictor(registry.Model(network, card, "tiny"))


def test_a_registered_model_predicts(published, images):
    tracking.connect(published.config.tracking.uri)
    published.client.set_registered_model_alias("tiny", "served", "1")
    served = mlflow.pyfunc.load_model("models:/tiny@served")
    expected = logits(published.network, published.config, images)
    np.testing.assert_allclose(served.predict(images), expected, rtol=1e-5, atol=1e-6)
    assert served.predict(served.input_example).shape == (1, 3)
    for wrong, words in ((images[:, :8], "shape"), (images / 255, "float64")):
        with pytest.raises(mlflow.exceptions.MlflowException, match=words):
            served.predict(wrong)


@pytest.mark.parametrize("chunk", [None, 1, 2, 7, 100])
def test_logits_do_not_depend_on_the_chunk(network, card, tiny_config, images, chunk):
    predictor = Predictor(registry.Model(network, card, "tiny"), chunk)
    sizes = []
    network.register_forward_hook(lambda _layer, inputs, _output: sizes.append(len(inputs[0])))
    found = predictor.predict(images)
    assert sum(sizes) == 7
    assert max(sizes) <= (chunk or 7)
    assert (found.dtype, found.shape) == (np.float32, (7, 3))
    np.testing.assert_allclose(found, logits(network, tiny_config, images), rtol=1e-5, atol=1e-6)


def test_a_large_batch_goes_through_in_parts(network, card):
    sizes = []
    network.register_forward_hook(lambda _layer, inputs, _output: sizes.append(len(inputs[0])))
    Predictor(registry.Model(network, card, "tiny")).predict(np.zeros((1000, 16, 16, 3), dtype=np.uint8))
    assert (sum(sizes), max(sizes)) == (1000, (1 << 18) // (16 * 16 * 3))


def test_arrays_of_any_layout_and_lists_are_as_good(predictor, images):
    expected = predictor.predict(images)
    frozen, backwards = images.copy(), images[::-1].copy()[::-1]
    frozen.flags.writeable = False
    for same in (frozen, backwards, np.asfortranarray(images), images.tolist()):
        np.testing.assert_allclose(predictor.predict(same), expected, rtol=1e-5, atol=1e-6)
    assert predictor.predict(images[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :8], r"shape \[7, 8, 16, 3\].*\[B, H, W, 3\] = \[any, 16, 16, 3\]"),
        (lambda x: x[0], r"shape \[16, 16, 3\]"),
        (lambda x: x.transpose(0, 3, 1, 2), r"shape \[7, 3, 16, 16\]"),
        (lambda x: x.astype(np.float32), "type float32.*uint8"),
        (lambda x: (x.astype(int) + 1000).tolist(), "type int64"),
        (lambda x: [[1], [1, 2]], "not of one shape"),
    ],
)
def test_other_inputs_are_refused_with_what_came_and_what_is_wanted(predictor, images, change, words):
    with pytest.raises(UserError, match=words):
        predictor.predict(change(images))
