"""Whether a teacher fits a hyperspace."""

import pytest
from torch import nn
from torch.nn.functional import avg_pool2d

from nni_spaceevo.distill.teachers import FeatureTeacher, check_teacher
from nni_spaceevo.distill.teachers.protocol import borders
from nni_spaceevo.errors import ConfigError
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.testing import synthetic_hyperspace

from .tiny import grey_images


class Blur(nn.Module):
    """Features of one channel."""

    fingerprint = "blur"

    def __init__(self, widths=(1, 1, 1, 1), stride=2):
        super().__init__()
        self.widths, self.stride = widths, stride

    def stage_features(self, images, stage):
        """Twice the same."""
        before = avg_pool2d(images, self.stride)
        return before, before


def test_borders_have_the_strides_of_the_published_hyperspaces():
    for name in ("onnxw", "mobilew"):
        assert list(borders(load_hyperspace(name)).items()) == [
            *(("stage0", 2), ("stage1", 4), ("stage2", 8), ("stage3", 16)),
            *(("stage4", 16), ("stage5", 32), ("stage6", 32)),
        ]


def test_a_fitting_teacher_is_shown_with_its_sizes():
    found = check_teacher(Blur(), synthetic_hyperspace(), grey_images())
    assert isinstance(Blur(), FeatureTeacher)
    assert [f.stage for f in found] == ["stage1", "stage2", "stage3"]
    assert found[0].widths == (1, 1)
    assert found[0].sizes == {8: (4, 4), 16: (8, 8)}


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (Blur((1, 1)), "2 widths; expected 4, one before stage1 and one after each of stage1, "),
        (Blur((1, 2, 1, 1)), r"after stage1 are \[1, 4, 4\] at 8 px; expected \[2, 4, 4\]"),
        (Blur(stride=4), r"before stage1 are \[1, 2, 2\] at 8 px; expected \[1, 4, 4\]"),
    ],
    ids=["widths", "width", "size"],
)
def test_a_teacher_that_does_not_fit_names_the_stage(teacher, words):
    with pytest.raises(ConfigError, match=words):
        check_teacher(teacher, synthetic_hyperspace(), grey_images())
