"""Sweeper of search=optuna: runs jobs with values that rankpo.sweeps.search chooses.

hydra-optuna-sweeper 1.3.0 wants optuna 2; this one wants optuna 4, prunes, and continues where it stopped.
"""

# Without `from __future__ import annotations`: Hydra runs this module before it is in sys.modules, which dataclasses use.

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class SearchSweeperConfig:
    """Settings without keys, since config/search/optuna.yaml has them."""

    _target_: str = "hydra_plugins.rankpo_search_sweeper.sweeper.SearchSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="rankpo_search", node=SearchSweeperConfig, provider="rankpo")


class SearchSweeper(Sweeper):
    """Requests values, runs their jobs with the launcher, and reports the results."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from rankpo.config.construct import build
        from rankpo.errors import ConfigError
        from rankpo.sweeps.ranges import split

        try:
            from rankpo.sweeps.search import Search
        except ImportError as error:
            raise ConfigError(["search=optuna needs optuna: pip install 'rankpo[search]'"]) from error

        assert self.config is not None and self.hydra_context is not None
        if "search" not in self.config:
            raise ConfigError(["hydra/sweeper=rankpo_search has no keys of its own; set search=optuna instead"])
        settings = build(OmegaConf.to_container(self.config.search, resolve=True), "search")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        fixed, ranges = split(
            parser.parse_overrides(list(arguments)),
            settings.params,
            lambda text: parser.parse_overrides([text])[0],  # Globs need the loader.
        )
        own = hasattr(self.launcher, "run")  # Such launchers observe running jobs.
        search = Search(settings, ranges, lambda values: self.job(fixed, values), watched=own)
        if own:
            search.close(self.launcher.run(search.jobs(), search.total, search))
            return
        at_once = int(OmegaConf.select(self.config, "hydra.launcher.array_parallelism") or 1)
        source, number = search.jobs(), 0
        while jobs := list(islice(source, at_once)):
            self.launcher.launch([job.overrides for job in jobs], number)
            number += len(jobs)
            for job in jobs:
                search.ended(job)
        search.close([])

    def job(self, fixed: list[str], values: Mapping[str, str]) -> Any:
        """The job of these values, with the overrides that all have. A job is no search itself."""
        from rankpo.sweeps.jobs import Job

        overrides = [*fixed, *(f"{key}={value}" for key, value in values.items()), "search=none"]
        return Job.of(overrides, self.hydra_context.config_loader.load_sweep_config(self.config, overrides))
