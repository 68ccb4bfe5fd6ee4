import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import pytest
from small import easy_data, small_backbone, with_head


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return with_head(small_backbone())


@pytest.fixture
def data():
    return easy_data()
