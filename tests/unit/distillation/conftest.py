"""A student and its teacher."""

import pytest
from transfer_models import STUDENT, TEACHER, model


@pytest.fixture
def student():
    return model(1, **STUDENT)


@pytest.fixture(scope="module")
def teacher():
    return model(2, **TEACHER).requires_grad_(False)
