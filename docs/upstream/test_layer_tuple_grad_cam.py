"""For ``tests/attr/layer/test_layer_tuple_grad_cam.py``; there the class comes from captum.attr."""

import unittest

import torch
from captum.attr import LayerGradCam
from torch import nn

from docs.upstream.layer_tuple_grad_cam import LayerTupleGradCam


class Test(unittest.TestCase):
    def setUp(self) -> None:
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.images = tuple(torch.rand(3, 2, 3, 8, 8))

    def loss(self, *embeddings: torch.Tensor) -> torch.Tensor:
        anchor, positive, negative = embeddings
        return (anchor - positive).square().sum(1) - (anchor - negative).square().sum(1)

    def test_of_one_input_it_is_layer_grad_cam(self) -> None:
        ours = LayerTupleGradCam(self.encoder, self.encoder[0])
        theirs = LayerGradCam(self.encoder, self.encoder[0])
        torch.testing.assert_close(
            ours.attribute(self.images[0], target=1), theirs.attribute(self.images[0], target=1)
        )

    def test_each_input_is_explained_with_the_others_held(self) -> None:
        def one_by_one(*images: torch.Tensor) -> torch.Tensor:
            return self.loss(*map(self.encoder, images))

        def together(*images: torch.Tensor) -> torch.Tensor:
            return self.loss(*self.encoder(torch.cat(images)).chunk(3))

        held = [self.encoder(image).detach() for image in self.images]
        expected = []
        for place, image in enumerate(self.images):

            def alone(given: torch.Tensor, place: int = place) -> torch.Tensor:
                embeddings = list(held)
                embeddings[place] = self.encoder(given)
                return self.loss(*embeddings)

            expected.append(LayerGradCam(alone, self.encoder[0]).attribute(image))
        for forward in (one_by_one, together):
            maps = LayerTupleGradCam(forward, self.encoder[0]).attribute(self.images)
            self.assertEqual(len(maps), 3)
            for ours, theirs in zip(maps, expected, strict=True):
                torch.testing.assert_close(ours, theirs)

    def test_no_hook_is_left_and_other_runs_are_refused(self) -> None:
        twice = LayerTupleGradCam(
            lambda image: self.encoder(image) + self.encoder(image.flip(3)), self.encoder[0]
        )
        with self.assertRaisesRegex(ValueError, "ran 2 times"):
            twice.attribute(self.images[0], target=0)
        self.assertFalse(self.encoder[0]._forward_hooks)


if __name__ == "__main__":
    unittest.main()
