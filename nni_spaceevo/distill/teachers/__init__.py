"""Teachers: what one is, a small one that is trained here, and pretrained ones."""

from .protocol import FeatureTeacher, StageFeatures, check_teacher
from .trained import Teacher, new_teacher, train_teacher

__all__ = [
    "FeatureTeacher",
    "StageFeatures",
    "Teacher",
    "check_teacher",
    "new_teacher",
    "train_teacher",
]
