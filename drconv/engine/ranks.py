"""The ranks of a training or an evaluation: device, process group, process-wide settings, data."""

import os

import torch

from drconv import distributed
from drconv.config import Config
from drconv.engine.data import Data
from drconv.engine.launch import threads_per_rank
from drconv.errors import ConfigError
from drconv.tasks import find_task
from drconv.tasks.registry import headline_name

KERNEL = "DRCONV_KERNEL"


class Ranks:
    """One rank's part in a run; what it sets for the process is put back when it leaves, as a sweep runs many."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = torch.device("cpu")
        self._kernel_before = os.environ.get(KERNEL)
        self._data: Data | None = None

    def join(self) -> None:
        """Joins the process group and sets what holds for the process."""
        self.device = select_device(self.config)
        distributed.init_process_group(self.device, self.config.runtime.timeout)
        try:
            apply_runtime(self.config)
        except BaseException:
            self.leave(failed=True)
            raise

    def load_data(self) -> Data:
        """The data sets of the task; raises a ConfigError where none is for the headline metric."""
        self._data = Data(self.config, find_task(self.config.task))
        name, sets = headline_name(self.config.task, self.config.experiment.metric), self._data.evaluations
        if name.partition("/")[0] not in sets:
            raise ConfigError(
                f"{name}, which the run is for, is never computed: its evaluation sets are {', '.join(sets)}; change "
                f"experiment.metric or the data"
            )
        return self._data

    def close_data(self) -> None:
        """Ends the loader processes."""
        if self._data is not None:
            self._data.close()

    def leave(self, failed: bool = False) -> None:
        """Gives back what ``join`` took.

        A rank that failed stays in its group until its process ends: the others fail when it leaves, and its reason has
        to be written before theirs.
        """
        os.environ.pop(KERNEL, None)
        if self._kernel_before is not None:
            os.environ[KERNEL] = self._kernel_before
        if not failed:
            distributed.destroy_process_group()


def select_device(config: Config) -> torch.device:
    """The device of this rank.

    Raises:
        ConfigError: CUDA is asked for and absent, or has fewer devices than ranks.
    """
    kind = config.runtime.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        if config.runtime.precision == "fp16":
            raise ConfigError("runtime.precision=fp16 needs a CUDA device and none was found; use bf16 or fp32")
        if config.runtime.sync_bn:
            raise ConfigError("runtime.sync_bn=true needs CUDA devices and none was found; switch it off")
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise ConfigError(
            f"runtime.device=cuda with {local_rank + 1} or more ranks, but {found} CUDA devices were found"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def apply_runtime(config: Config) -> None:
    """Process-wide settings, and the seed of the network's first weights."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(threads_per_rank(config))
    if config.runtime.kernel is not None:
        os.environ[KERNEL] = config.runtime.kernel
    torch.use_deterministic_algorithms(config.runtime.deterministic)
    torch.backends.cudnn.benchmark = not config.runtime.deterministic
    if config.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
