"""Options of the chaos test."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seed", type=int, default=None, help="the dice of the faults; default: those of CI")
    parser.addoption("--chaos-minutes", type=float, default=None, help="how long; default: one short run")
