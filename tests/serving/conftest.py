"""What several tests of the API share: a tiny model and its predictor."""

from pathlib import Path

import pytest
from helpers.models import save_tiny_model

from exp_tools.serving.predictor import Predictor


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor(model)
