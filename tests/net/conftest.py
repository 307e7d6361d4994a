"""Explains the assertions in the modules beside the tests, too; pyproject.toml has their path."""

import pytest

pytest.register_assert_rewrite("conformance", "ends", "faults", "nameserver", "places")
