"""What `olmo explore` is told: `configs/explore.yaml`."""

import ipaddress
import math
from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from data_tools.trace.config import TraceConfig
from data_tools.trace.opening import find_config_problems
from olmo_train.config.train import Device


class LogLevel(StrEnum):
    """Of what the server says on the terminal."""

    WARNING = "warning"
    INFO = "info"
    """A line per request."""


@dataclass
class LimitsConfig:
    """What one request may ask for."""

    text: int = 50_000
    """Characters of a text to trace, and of its prompt."""
    max_tokens: int = 1000
    """Of one generation."""
    window: int = 2000
    """Tokens of a document shown at once."""
    steps: int = 64
    """Checkpoints of one curve of probability; where a run has more, they are spread over it."""
    models: int = 2
    """Kept in memory, those used last."""


@dataclass
class ExploreConfig:
    """`configs/explore.yaml`."""

    run: str = MISSING
    """Folder of a run."""
    host: str = "127.0.0.1"
    """Address that the server listens at. Anything but loopback lets others read the training data."""
    port: int = 8000
    """0: any free one."""
    names: list[str] = field(default_factory=list)
    """Host names, besides `host` and those of loopback, under which a browser may ask: others are refused, so that a page
    elsewhere cannot read answers by a name that points here."""
    open_browser: bool = False
    device: Device = Device.AUTO
    """Of the model."""
    log_level: LogLevel = LogLevel.WARNING
    limits: LimitsConfig = MISSING
    trace: TraceConfig = MISSING


def is_loopback(host: str) -> bool:
    """Whether only this machine can ask there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_problems(config: ExploreConfig) -> list[str]:
    """What values together, or alone, have wrong."""
    problems = []
    if not 0 <= config.port < 2**16:
        problems.append(f"port={config.port} must be 1 to 65535, or 0 for any free one")
    if not config.host:
        problems.append("host='' must be an address of this machine; 127.0.0.1 is for this machine alone")
    for name in ("text", "max_tokens", "window", "steps", "models"):
        value = getattr(config.limits, name)
        if not 0 < value < math.inf:
            problems.append(f"limits.{name}={value} must be positive")
    return problems + [f"trace.{problem}" for problem in find_config_problems(config.trace)]
