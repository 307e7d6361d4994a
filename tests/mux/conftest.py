"""The assertions in the modules beside the tests are explained (pyproject.toml has its path)."""

import pytest

pytest.register_assert_rewrite("both", "model")
