"""What type checkers see of a user's script; test_packaging.py has mypy and pyright look at it."""

from torch import Tensor, nn
from typing_extensions import assert_type

from captum_embed import EmbeddingLayerGradCam, TripletForward, WeightBank, recipes


def use(encoder: nn.Sequential, one: Tensor, several: tuple[Tensor, ...], bank: WeightBank) -> None:
    forward = TripletForward(encoder)
    grad_cam = EmbeddingLayerGradCam(forward, encoder[0])
    assert_type(grad_cam.attribute(one), Tensor)
    assert_type(grad_cam.attribute(several), tuple[Tensor, ...])
    assert_type(grad_cam.attribute((one, one, one)), tuple[Tensor, ...])
    assert_type(grad_cam.grad_weights(one), Tensor)
    assert_type(grad_cam.grad_weights(several), tuple[Tensor, ...])
    transfer = recipes.EXPLAIN.grad_cam(forward, encoder[0], weight_bank=bank)
    assert_type(transfer, EmbeddingLayerGradCam)
    assert_type(transfer.attribute(one), Tensor)
